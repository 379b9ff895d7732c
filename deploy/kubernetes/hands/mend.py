"""Make grants private to this user again. Use it only if you are sure that nobody else had the volume."""

import os
from pathlib import Path

state = Path(os.environ["REFRESHER_STATE_DIR"])
if state.is_dir() and not state.is_symlink():
    state.chmod(state.stat().st_mode & ~0o022)
    print(f"{state}: only this user can write in it")
grants = state / "grants"
for directory in (grants, Path(os.environ["REFRESHER_SPILL_DIR"])):
    if directory.is_dir() and not directory.is_symlink():
        directory.chmod(0o700)
        for path in directory.iterdir():
            if path.is_file() and not path.is_symlink():
                path.chmod(0o600)
                print(f"{path}: this user's alone")
