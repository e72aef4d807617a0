"""Data that may not change without somebody at the silo having seen it: manifests that an approval or a freeze pins."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from orchestrator.at_rest import Key, key_in, make_key
from orchestrator.core import document
from orchestrator.core.errors import BadInput
from silos.audit import write_private
from silos.data import TableData
from silos.image_files import ImageFolder
from silos.manifest import Manifest, difference, manifest_of, read_manifest

FILE = "frozen.json"
SECRET = "manifest.key"


class Freeze(BaseModel, frozen=True, extra="forbid"):
    """One data set, as somebody saw it."""

    digest: str
    who: str
    when: str


class _File(BaseModel, frozen=True, extra="forbid"):
    frozen: dict[str, Freeze] = {}


class Manifests:
    """Those of a silo's data sets, in its own folder."""

    def __init__(self, folder: Path) -> None:
        """``folder``: the silo's own (``.siloray/NAME``)."""
        self.folder = folder / "manifests"
        self._secret_file, self._frozen_file = folder / SECRET, folder / FILE

    def of(self, dataset: str, data: TableData | ImageFolder) -> Manifest:
        """As the files are now. Those that did not change since the last time are not read again."""
        latest = self.folder / f"{dataset}.jsonl"
        known = read_manifest(latest)
        made = manifest_of(data, self._secret(), known)
        if known is None or known != made:
            write_private(latest, made.as_text())
        return made

    def keep(self, dataset: str, manifest: Manifest) -> None:
        """For a comparison some day."""
        write_private(self._path(dataset, manifest.digest), manifest.as_text())

    def check(
        self, dataset: str, now: Manifest, pinned: str | None, since: str, remedy: str, counts: bool
    ) -> None:
        """Raises `BadInput` unless the data is what was ``pinned``; with the numbers of rows where ``counts`` may be
        told. Which rows they are stands in ``difference-DATASET.jsonl``.

        ``since``: how the sentence says when that was (``the job was approved``).
        """
        if pinned == now.digest:
            return
        if pinned is None:
            told = f"data set '{dataset}': not on record when {since}; {remedy}"
            raise BadInput(told, told)
        told = f"data set '{dataset}' changed since {since}"
        old = read_manifest(self._path(dataset, pinned))
        if old is None:
            raise BadInput(f"{told}; {remedy}", f"{told}; {remedy}")
        found, path = difference(old, now), self.folder.parent / f"difference-{dataset}.jsonl"
        write_private(path, "".join(json.dumps(each) + "\n" for each in found.places))
        sentence = f"{told}: {found.sentence(counts)}; {remedy}"
        raise BadInput(f"{sentence} ({path} has the rows)", sentence)

    def frozen(self) -> Mapping[str, Freeze]:
        """By data set. Raises `BadInput`."""
        try:
            text = json.loads(self._frozen_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            raise BadInput(
                f"{self._frozen_file}: cannot be read; freeze the data anew and remove it"
            ) from None
        return document.validate(text, _File, str(self._frozen_file)).frozen

    def freeze(self, dataset: str, manifest: Manifest, who: str, when: str) -> None:
        """From now on, this is the data."""
        self.keep(dataset, manifest)
        frozen = {**self.frozen(), dataset: Freeze(digest=manifest.digest, who=who, when=when)}
        write_private(self._frozen_file, _File(frozen=frozen).model_dump_json(indent=1) + "\n")

    def last(self, dataset: str, digest: str) -> Manifest | None:
        """One that was kept."""
        return read_manifest(self._path(dataset, digest))

    def _secret(self) -> Key:
        """Made on first use. Without it, all manifests have to be made and approved anew."""
        if not self._secret_file.exists():
            self._secret_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return make_key(self._secret_file)
        return key_in(self._secret_file)

    def _path(self, dataset: str, digest: str) -> Path:
        return self.folder / f"{dataset}-{digest[:16]}.jsonl"
