"""Archives that tarfile and this reader both accept hold the same files for both."""

# The expected value comes first.

from __future__ import annotations

import tarfile
import tempfile
import unicodedata
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from package_samples import entry, save, tar
from store_samples import count

from hivellm_ort.package.archive import extract
from hivellm_ort.package.member_names import is_never_loaded

FORMS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]

_part = st.text("abcxyz019-_. \u00e9\u6a21", min_size=1, max_size=60).map(lambda part: f"n{part}n")
_name = st.lists(_part, min_size=1, max_size=3).map("/".join).filter(lambda name: len(name.encode()) <= 200)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFD", name.split("/")[0]).casefold()


@settings(max_examples=count("HIVELLM_FUZZ_EXAMPLES", 300) // 2)
@given(
    form=st.sampled_from(FORMS),
    files=st.lists(
        st.tuples(_name, st.binary(max_size=1500)), max_size=6, unique_by=lambda file: _folded(file[0])
    ),
    dotted=st.booleans(),
    repeated=st.booleans(),
)
def test_same_as_tarfile(form: int, files: list[tuple[str, bytes]], *, dotted: bool, repeated: bool) -> None:
    """Names of every length, in every form of tar, with `./` and with repeats, come out as tarfile reads them."""
    prefix = "./" if dotted else ""
    entries = [entry(prefix + name, data) for name, data in files]
    entries += [entry("./", type=tarfile.DIRTYPE), entry("skipped.py", b"1")]
    try:
        data = tar(*entries, *(entries if repeated else []), form=form)
    except ValueError:
        return  # a name too long for the oldest form
    with tempfile.TemporaryDirectory() as scratch:
        package, out = save(Path(scratch, "p"), data), Path(scratch, "out")
        contents = extract(package, out)
        with tarfile.open(package) as archive:
            members = {info.name.removeprefix("./"): info for info in archive if info.isreg()}
            expected = {
                name: archive.extractfile(info).read()  # type: ignore[union-attr]
                for name, info in members.items()
            }
        found = {member.name: (out / member.name).read_bytes() for member in contents.members}
    assert {name: data for name, data in expected.items() if not is_never_loaded(name)} == found
    assert ["skipped.py"] == [member.name for member in contents.skipped]
    assert sorted(expected) == sorted([*found, "skipped.py"])
