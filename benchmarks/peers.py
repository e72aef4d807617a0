"""Other frameworks to measure beside ours, each in an environment of its own that this project never enters."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def interpreter_with(requirement: str) -> Path | None:
    """Of an environment under the temporary folder that has this package, which is fetched the first time; None where
    it cannot be fetched."""
    folder = Path(tempfile.gettempdir()) / "siloray-peers" / requirement.replace("=", "-")
    python = folder / "bin" / "python"
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    try:
        if not (folder / "complete").exists():
            subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)], check=True)
            subprocess.run([uv, "pip", "install", "-q", "--python", str(python), requirement], check=True)
            (folder / "complete").touch()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{requirement} could not be fetched: {error}", file=sys.stderr)
        return None
    return python
