"""llama.cpp as a peer: the prebuilt binary inside the npm package ``node-llama-cpp``, fetched only when
asked.

It reads the same GGUF file. Nothing is compiled and no script of any package runs; what is fetched goes to
the cache folder and may be deleted at any time.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from infinichat.bench.wire import Child, PeerError

PACKAGE = "node-llama-cpp@^3"

SCRIPT = Path(__file__).with_suffix(".mjs")


def llamacpp_peer(weights: Path, *, threads: int, context: int, cache: Path) -> Child:
    """llama.cpp over the GGUF file ``weights`` with room for ``context`` tokens. Raises ``PeerError`` when
    node is not there, the package cannot be fetched, or the weights are no GGUF."""
    if weights.suffix != ".gguf":
        raise PeerError(f"llama.cpp reads GGUF files; {weights} is none. Next: leave --against llamacpp out.")
    node = shutil.which("node")
    if node is None:
        raise PeerError("llama.cpp is run by node, which is not installed. Next: install Node.js 20.")
    folder = _fetched(cache / "bench" / "llamacpp")
    # Modules are found beside the script, so it has to lie beside them.
    script = folder / SCRIPT.name
    shutil.copyfile(SCRIPT, script)
    return Child("llama.cpp", [node, str(script), str(weights), str(threads), str(context)])


def _fetched(folder: Path) -> Path:
    if (folder / "node_modules" / "node-llama-cpp" / "package.json").exists():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise PeerError("node-llama-cpp comes from npm, which is not installed. Next: install npm.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "package.json").write_text('{"private": true, "type": "module"}\n', encoding="utf-8")
    done = subprocess.run(
        [npm, "install", PACKAGE, "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise PeerError(
            f"npm could not fetch {PACKAGE}: {words[-1] if words else 'it said nothing'}. "
            "Next: check the network, or leave --against llamacpp out."
        )
    return folder
