"""Mutated configurations: ``python -m tests.hostile.configurations [--count 10000] [--seed 0]``.

Each mutant of a built-in configuration must be refused by a ConfigError or load as a configuration
whose networks can be built. Counted are tracebacks (other exceptions), hangs (more than SECONDS)
and nonsense: an accepted value outside of its limits, one that changes when it is written and read
again, or networks that cannot be built. Seconds are of CPU time, so that a busy machine makes no
hangs; one that waits ends after WAIT.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fastunit import config
from fastunit.common.errors import ConfigError
from fastunit.config.fields import known_keys
from fastunit.models.unit import networks
from tests.support.checkout import ROOT

SECONDS, WAIT = 5, 120
BASES = ("demo", "photos", "maps", "emoji", "paper")
VALUES = [
    *("", "~", "null", "true", "on", "'on'", "0", "-1", "1", "2", "3", "7", "16", "64", "1e3"),
    *("0.5", "1.0", "-0.0", "1e-4", "1e400", "-1e400", ".inf", "-.inf", ".nan", "nan", "inf"),
    *("0x10", "0x_", "0b1", "0o17", "010", "1_000", "1__0", "_1", "+5", "12:30:45", "1:2"),
    *("2001-13-45", "2001-12-14", "2001-12-14t21:59:43.10-05:00", "!!int x", "!!float x"),
    *("!!binary =", "!!set {a}", "!!python/object/apply:os.getpid []", "!!timestamp 1", "!x y"),
    *("[1,2]", "[2,1]", "[0,65535]", "[1,2,3]", "[]", "{}", "{a: 1}", "[[[[1]]]]", "- 1", "'"),
    *('"\\U99999999"', '"\\x00"', '"\\ud800"', "*a", "&a 1", "<<", "? a", "%", "@", "`", "|", ">"),
    *("1" + "0" * 30, "1" * 5000, "-" + "9" * 25, "2147483648", "10000000000", "9" * 18),
    *("a" * 5000, "é" * 300, "\x1b[31m", "\u202e", "[" * 500, "{a: " * 300, "[" * 20000),
    *("relu", "lsgan", "release", "paper", "learned", "copy", "full", "scenes", "linear", "auto"),
]
BOMBS = [
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    + "".join(f"{y}: &{y} [*{x}{f',*{x}' * 8}]\n" for x, y in ("bc", "cd", "de", "ef", "fg", "gh")),
    "x: &x {a: 1}\ny: &y {<<: [*x,*x,*x,*x]}\ngen: {<<: [*y,*y,*y,*y]}\n",
    "gen: &g\n  <<: *g\n",
    "- " * 30000,
    "? " * 5000,
    "{" * 60000,
    "a: " * 2000,
    "'" + "\n" * 50000,
    "lr: 1\nlr: 2\n",
    "--- 1\n--- 2\n",
    "%YAML 9.9\n---\nlr: 1\n",
    "%TAG ! tag:x,2000:\n---\nlr: !int 1\n",
    "lr: 1\n" * 20000,
    "\ufefflr: 1e-4\n",
    "\x00",
    "lr: |\n  1\n",
]


def mutants(count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (text of the YAML file, overrides); the same for the same seed."""
    rng = random.Random(seed)
    texts = [(ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8") for name in BASES]
    keys = known_keys(config.Config)
    for _ in range(count):
        text, overrides = rng.choice(texts), []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            kind = rng.randrange(6)
            if kind == 0:
                text = _scramble(text, rng)
            elif kind == 1:
                text = _replace_value(text, rng)
            elif kind == 2 and rng.random() < 0.3:
                text = rng.choice((text, "")) + rng.choice(BOMBS)
            else:
                overrides.append(f"{_key(keys, rng)}={rng.choice(VALUES)}")
        yield text, overrides


def attempt(path: Path, text: str, overrides: list[str]) -> str:
    """Return what became of a mutant: "refused", "accepted", or what is wrong."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        with _limit():
            loaded = config.load(path, overrides)
    except ConfigError as error:
        return "refused" if len(str(error)) < 5000 else "traceback: a message of 5,000 characters"
    except TimeoutError:
        return "hang"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    try:
        with _limit():
            path.write_text(config.dump_yaml(loaded), encoding="utf-8")
            again = config.load(path)
        if again != loaded:
            return "nonsense: it changes when it is written and read again"
        _build(loaded)
    except Exception as error:
        return f"nonsense: {type(error).__name__}: {str(error)[:200]}"
    return "accepted"


_built: set[tuple[object, ...]] = set()


def _build(settings: config.Config) -> None:
    """Build the networks without memory; large ones only once."""
    parts = (settings.network, settings.gen, settings.dis, settings.paper, settings.share)
    key = (*parts, settings.latent, settings.input_dim_a, settings.input_dim_b)
    if key in _built:
        return
    short = dataclasses.replace(
        settings, gen=dataclasses.replace(settings.gen, n_res=min(settings.gen.n_res, 4)),
        share=config.ShareConfig(), init="default",
    )  # fmt: skip
    with torch.device("meta"):
        networks(short)
    _built.add(key)


def _key(keys: list[str], rng: random.Random) -> str:
    key = rng.choice(keys)
    if rng.random() < 0.9:
        return key
    odd = (key + "x", key[:-1], key.upper(), "." + key, key + ".", "a." * 50, "x" * 5000, "<<", "")
    return rng.choice(odd)


def _replace_value(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    places = [i for i, line in enumerate(lines) if ":" in line and not line.startswith("#")]
    place = rng.choice(places or [0])
    lines[place] = lines[place].partition(":")[0] + ": " + rng.choice(VALUES)
    return "\n".join(lines)


def _scramble(text: str, rng: random.Random) -> str:
    place, how = rng.randrange(len(text) or 1), rng.randrange(5)
    if how == 0:
        return text[:place]
    if how == 1:
        return text[:place] + chr(rng.choice((0, 9, 13, 27, 58, 91, 123, 38, 42, 0x85, 0xD800)))
    if how == 2:
        return text[:place] + text[place + rng.randrange(1, 9) :]
    if how == 3:
        return text[:place] + text[place : place + 300] * rng.randrange(2, 5) + text[place:]
    return text[:place] + rng.choice(VALUES) + text[place:]


@contextmanager
def _limit() -> Iterator[None]:
    def fail(number: int, frame: object) -> None:
        raise TimeoutError

    before = {number: signal.signal(number, fail) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(WAIT)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Try mutants; return counts of what became of them, and descriptions of the wrong ones."""
    counts: Counter[str] = Counter()
    wrong = []
    with TemporaryDirectory() as folder:
        for index, (text, overrides) in enumerate(mutants(count, seed)):
            outcome = attempt(Path(folder, "mutant.yaml"), text, overrides)
            counts[outcome.partition(":")[0]] += 1
            if outcome not in ("refused", "accepted"):
                wrong.append(f"{index}: {outcome}; overrides {str(overrides)[:200]}")
    return counts, wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if nothing went wrong, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.configurations")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    counts, wrong = run(args.count, args.seed)
    print("\n".join(wrong[:20]))
    print(", ".join(f"{name} {n}" for name, n in sorted(counts.items())), f"of {args.count}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
