"""Rules for the names of a package's members: which are never loaded, which may be large, and which collide."""

from __future__ import annotations

import re
import unicodedata

from hivellm_ort.contract import WEIGHTS_FILE
from hivellm_ort.errors import IntegrityError
from hivellm_ort.filenames import is_system_file, shown

__all__ = ["MemberNames", "is_never_loaded", "is_weights"]

# Endings of files that are pickles or may hold one (NumPy's and HDF5 files can), or that a system may run.
_PICKLES = "bin pt pth pkl pickle ckpt joblib npy npz h5 hdf5 keras"
_LIBRARIES = "dll dylib pyd"
_PROGRAMS = "exe com scr msi jar class"
_SCRIPTS = "sh bash command bat cmd ps1 psm1 vbs js hta lnk py pyc pyo pyw pyz"
_NEVER_LOADED = re.compile(
    rf"\.(?:{'|'.join([*_PICKLES.split(), *_LIBRARIES.split(), *_PROGRAMS.split(), *_SCRIPTS.split()])}"
    r"|so(?:\.\d+)*)\Z",
    re.IGNORECASE,
)
# The weights of a bundle. They are plain numbers, although they end in `.bin` like pickles.
_BUNDLE_WEIGHTS = re.compile(rf"onnx/(?:[^/]+/)?{re.escape(WEIGHTS_FILE)}\Z")
# Files that may be as large as a model. Files of checkpoints are among them, although they are skipped.
_WEIGHTS = re.compile(
    rf"(?:\.(?:{'|'.join(_PICKLES.split())}|safetensors|gguf|onnx|data)|_data)\Z", re.IGNORECASE
)


def is_never_loaded(name: str) -> bool:
    """Return whether a member is skipped because its ending is that of a pickle, program or script."""
    # ONNX Runtime reads the base's external data, plain tensors, from this one name.
    return _NEVER_LOADED.search(name) is not None and _BUNDLE_WEIGHTS.match(name) is None


def is_weights(name: str) -> bool:
    """Return whether a file may be as large as a model. Other files are texts, tokenizers and the like."""
    return _WEIGHTS.search(name) is not None and not is_system_file(name)


class MemberNames:
    """Collects the names of one archive and refuses names that collide on some file systems.

    Two names collide if they differ only in case or in Unicode normalisation, or if one is a file and the other a
    folder.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, bool]] = {}

    def add(self, name: str, *, directory: bool = False) -> bool:
        """Add a checked name and the folders above it.

        Args:
            name: A name that `member_name` returned.
            directory: Whether the member is a folder.

        Returns:
            Whether the name is new; False if the same name and kind was added before.

        Raises:
            IntegrityError: The name collides with an earlier one.
        """
        parts = name.split("/")
        for depth in range(1, len(parts)):
            self._note("/".join(parts[:depth]), directory=True)
        return self._note(name, directory=directory)

    def _note(self, name: str, *, directory: bool) -> bool:
        folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
        if folded not in self._seen:
            self._seen[folded] = (name, directory)
            return True
        other, other_directory = self._seen[folded]
        if (other, other_directory) == (name, directory):
            return False
        kind, other_kind = ("folder" if is_folder else "file" for is_folder in (directory, other_directory))
        raise IntegrityError(
            f"{kind} {shown(name)} collides with {other_kind} {shown(other)}; "
            "rename one of them and pack the archive again"
        )
