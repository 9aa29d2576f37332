"""Resolve the requirements anew, and write the locks: exact versions, with the hashes of every file.

uv does it, for all platforms and for every Python from 3.11 on at once; what is done here is to give torch's builds a
lock each. The one on PyPI wants gigabytes of CUDA on Linux, which `requirements-cuda.lock` names. Where pip is shown a
CPU build (in an index of PyTorch's, or a folder of wheels), `requirements-cpu.lock` lets it have that one.

    python .ci/lock.py [--upgrade]      without --upgrade, what is locked stays where the requirements admit it
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OF_CUDA = re.compile(r"(nvidia-|cuda-|triton==)")


def main() -> None:
    options = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    everything = resolve("requirements", *options)
    write("requirements", [package for package in everything if not OF_CUDA.match(package)])
    write("requirements-cuda", [package for package in everything if OF_CUDA.match(package)])
    write("requirements-dev", resolve("requirements-dev", "--constraints", "requirements.lock", *options))
    torch = next(package.split()[0] for package in everything if package.startswith("torch=="))
    version, digest = build_here(torch)
    if "+cpu" in version:
        write("requirements-cpu", [f"torch=={version} \\\n    --hash=sha256:{digest}\n"])
    else:
        print(f"pip has no CPU build of {torch} here: requirements-cpu.lock is as it was", file=sys.stderr)


def resolve(name: str, *options: str) -> list[str]:
    """What uv finds for a file of requirements: for each package its version and hashes."""
    command = ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes", "--quiet"]
    command += ["--no-header", "--no-annotate", "--output-file", f"{name}.lock", *options, f"{name}.txt"]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    return re.findall(r"^\w.*\n(?:[ \t].*\n)*", (ROOT / f"{name}.lock").read_text(), re.MULTILINE)


def build_here(requirement: str) -> tuple[str, str]:
    """The version and the SHA-256 of the file that pip would install on this machine."""
    command = [
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--quiet",
        "--report",
        "-",
        requirement,
    ]
    found = subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, text=True).stdout
    [file] = json.loads(found)["install"]
    return file["metadata"]["version"], file["download_info"]["archive_info"]["hashes"]["sha256"]


def write(name: str, packages: list[str]) -> None:
    (ROOT / f"{name}.lock").write_text("# Made by `make lock` or `make upgrade`; do not edit.\n" + "".join(packages))


if __name__ == "__main__":
    main()
