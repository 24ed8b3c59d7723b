"""The choices of options, each in one place; needs neither torch nor YAML."""

ACTIVATIONS = ("relu", "lrelu", "prelu", "selu", "tanh", "none")
NORMS = ("none", "bn", "in", "ln")
PAD_TYPES = ("zero", "reflect", "replicate")
GAN_TYPES = ("lsgan", "nsgan")
PRECISIONS = ("auto", "bf16", "tf32", "fp32", "inherit")
SWITCH = ("auto", "on", "off")
LATENTS = ("unit", "learned")
NETWORKS = ("release", "paper")
INITS = ("gaussian", "xavier", "kaiming", "orthogonal", "default")
LR_POLICIES = ("step", "constant", "linear")
INITS_B = ("own", "copy")
