"""What lies on disk is encrypted on request: checkpoints, starting weights, a silo's state, trainings and models."""

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import at_rest, starting
from orchestrator.at_rest import STORE_KEY, Key, NotOpened, key_in, key_of, make_key
from orchestrator.checkpoints import MANIFEST, STATE, checkpoint_name
from orchestrator.core.errors import BadInput
from orchestrator.core.events import Source
from orchestrator.store import NothingUsable, Recovered, Store
from silos.configured_site import ConfiguredSite
from silos.kept_models import KeptModels
from silos.key_source import KeySource
from silos.mid_round import FILE, MidRound
from silos.state import SiloState
from tests.support.quadratic_run import run
from tests.unit.test_store import META, closed, flip, state_of

KEY, OTHER = Key(b"k" * 32), Key(b"o" * 32)
HERE = Path("file")
SECRET = np.arange(1000, dtype=np.float32)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_rest, "CHUNK_BYTES", 16)


def sealed(data: bytes, what: str = "a", key: Key = KEY) -> bytes:
    return b"".join(at_rest.sealed(key, [data], what))


def opened(data: bytes, what: str = "a", key: Key | None = KEY) -> bytes:
    return at_rest.opened(key, data, what, HERE, "give the key")


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_in_any_pieces_come_back(pieces: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at_rest, "CHUNK_BYTES", 16)
        data, whole = b"".join(at_rest.sealed(KEY, pieces, "a")), b"".join(pieces)
        assert opened(data) == whole
        assert len(data) == at_rest.sealed_bytes(len(whole))


@pytest.mark.usefixtures("short")
def test_every_changed_byte_and_every_cut_is_noticed() -> None:
    data = sealed(bytes(50))
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((NotOpened, BadInput)):
            opened(bytes(changed))
    for end in range(len(data)):
        with pytest.raises((NotOpened, BadInput)):
            opened(data[:end])


@pytest.mark.usefixtures("short")
def test_chunks_cannot_be_exchanged_and_a_file_is_itself() -> None:
    data = sealed(bytes(48))
    head = len(data) - 3 * 32
    first, second, third = (data[head + 32 * i : head + 32 * (i + 1)] for i in range(3))
    for mixed in (second + first + third, first + second, first + third, first + second + third + third):
        with pytest.raises(NotOpened):
            opened(data[:head] + mixed)
    with pytest.raises(NotOpened):
        opened(data, what="b")
    assert sealed(b"same") != sealed(b"same")


def test_keys_that_do_not_fit_are_told_from_damage() -> None:
    with pytest.raises(BadInput, match=f"another key than {OTHER.id}; give the key"):
        opened(sealed(b"x"), key=OTHER)
    with pytest.raises(BadInput, match="encrypted; give the key"):
        opened(sealed(b"x"), key=None)
    with pytest.raises(BadInput, match="in the clear, although a key is given"):
        opened(b"plain")
    assert opened(b"plain", key=None) == b"plain"


# Keys


def test_a_key_file_is_its_owners_and_is_never_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    made = make_key(path)
    text = path.read_text().strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_in(path).id == made.id
    assert text not in f"{made} {made!r} {vars(made).keys()}"
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(made)
    with pytest.raises(BadInput, match="such a file already"):
        make_key(path)
    path.chmod(0o640)
    with pytest.raises(BadInput, match=f"chmod 600 {path}"):
        key_in(path)
    assert not any(capfd.readouterr())


@pytest.mark.parametrize("text", ["", "00" * 31, "zz" * 32, "A" * 43 + "=x", "é"])
def test_what_is_no_key(text: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(BadInput, match="no key; expected 32 bytes") as caught:
        key_in(path)
    assert not text or text not in str(caught.value)


def test_each_purpose_and_salt_has_a_key_of_its_own() -> None:
    made = {KEY.derived(b"a"), KEY.derived(b"b"), KEY.derived(b"a", b"salt"), OTHER.derived(b"a"), b"k" * 32}
    assert len(made) == 5 and {len(each) for each in made} == {32}


def test_base64_and_digits_are_the_same_key() -> None:
    secret = os.urandom(32)
    assert key_of(secret.hex(), "x").id == key_of(base64.b64encode(secret).decode() + "\n", "x").id


def test_a_silo_has_its_key_from_file_environment_or_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_key(tmp_path / "key")
    monkeypatch.setenv("OUR_KEY", (tmp_path / "key").read_text())
    sources: list[dict[str, Any]] = [{"file": "key"}, {"env": "OUR_KEY"}, {"command": ["cat", "key"]}]
    assert {KeySource(**each).key(tmp_path).id for each in sources} == {made.id}
    for source, said in [
        ({"file": "none"}, "No such file"),
        ({"file": "../key"}, "out of"),
        ({"env": "NONE"}, "no such environment variable"),
        ({"command": ["false"]}, "ended with code 1"),
        ({"command": ["no-such-program"]}, "No such file"),
        ({"command": ["echo", "secret-but-no-key"]}, "no key"),
    ]:
        with pytest.raises(BadInput, match=said) as caught:
            KeySource(**source).key(tmp_path)
        assert "secret-but" not in str(caught.value)
    with pytest.raises(ValueError, match="give one of"):
        KeySource(file="a", env="b")


@pytest.mark.parametrize("way", ["hex", "base64"])
def test_a_key_in_the_wrong_place_is_not_repeated(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These lines go to logs and, from a node's `doctor`, to the operator."""
    secret = os.urandom(32)
    key = secret.hex() if way == "hex" else base64.b64encode(secret).decode()
    for wrong in (key, [key], {"file": key}, {"env": key}, {"command": key}, {"command": [key]}, {key: key}):
        document = {"name": "a", "datasets": {"d": {"path": "x.csv"}}, "at_rest": {"key": wrong}}
        (tmp_path / "silo.yaml").write_text(yaml.safe_dump(document))
        with pytest.raises(BadInput) as caught:
            _ = ConfiguredSite(tmp_path / "silo.yaml").key
        assert key[:20] not in str(caught.value) + caught.value.public
    monkeypatch.setenv(STORE_KEY, key)
    for ask in (at_rest.named_key, at_rest.store_key):
        with pytest.raises(BadInput, match=f"{STORE_KEY}: a key itself") as caught:
            ask()
        assert key[:20] not in str(caught.value)


# The driver's side


def filled(root: Path, key: Key | None) -> None:
    store = Store(root, key=key)
    store.acquire("test")
    store.recover()
    for version in range(3):
        store.commit(version, state_of(version), closed(version), META)
    store.release()


def recovered(root: Path, key: Key | None) -> Recovered:
    store = Store(root, key=key)
    store.acquire("test")
    try:
        found = store.recover()
    finally:
        store.release()
    assert found is not None
    return found


def test_checkpoints_hold_no_number_in_the_clear_and_come_back(tmp_path: Path) -> None:
    filled(tmp_path / "run", KEY)
    folder = tmp_path / "run" / "checkpoints" / checkpoint_name(2)
    data = (folder / STATE).read_bytes()
    for vector in state_of(2).values():
        assert vector.tobytes()[:16] not in data
    assert b"params" not in data
    assert json.loads((folder / MANIFEST).read_bytes())["meta"] == META
    found = recovered(tmp_path / "run", KEY)
    assert {name: each.tobytes() for name, each in found.state.items()} == {
        name: each.tobytes() for name, each in state_of(2).items()
    }


def test_a_damaged_one_is_passed_over_and_a_wrong_key_is_not(tmp_path: Path) -> None:
    filled(tmp_path / "run", KEY)
    checkpoints = tmp_path / "run" / "checkpoints"
    for key, said in ((OTHER, "another key"), (None, f"name the file of its key in {STORE_KEY}")):
        with pytest.raises(BadInput, match=said):
            recovered(tmp_path / "run", key)
    assert len(list(checkpoints.glob("v*"))) == 3, "nothing was set aside for want of a key"
    flip(checkpoints / checkpoint_name(2) / STATE, -1)
    assert recovered(tmp_path / "run", KEY).version == 1


def test_a_checkpoint_in_the_place_of_another_is_passed_over(tmp_path: Path) -> None:
    """Its manifest is made to agree: what is encrypted says itself which version it is."""
    from orchestrator.checkpoints import _sealed, _unsealed

    filled(tmp_path / "run", KEY)
    old, new = (tmp_path / "run" / "checkpoints" / checkpoint_name(version) for version in (1, 2))
    (new / STATE).write_bytes((old / STATE).read_bytes())
    forged = _unsealed((old / MANIFEST).read_bytes()) | {"version": 2}
    (new / MANIFEST).write_bytes(_sealed(forged))
    found = recovered(tmp_path / "run", KEY)
    assert found.version == 1 and "another file's" in str(found.skipped)


def test_a_run_in_the_clear_does_not_go_on_with_a_key(tmp_path: Path) -> None:
    filled(tmp_path / "run", None)
    with pytest.raises(BadInput, match="in the clear"):
        recovered(tmp_path / "run", KEY)


def test_all_damaged_is_nothing_usable(tmp_path: Path) -> None:
    filled(tmp_path / "run", KEY)
    for version in range(3):
        flip(tmp_path / "run" / "checkpoints" / checkpoint_name(version) / STATE, 50)
    with pytest.raises(NothingUsable):
        recovered(tmp_path / "run", KEY)


def test_starting_weights_are_encrypted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = starting.StartingWeights(
        {"w": SECRET.reshape(10, 100)}, Source(kind="file", name="x", sha256="0", contributors=["us"])
    )
    starting.save(weights, tmp_path / "open")
    key = make_key(tmp_path / "key")
    monkeypatch.setenv(STORE_KEY, str(tmp_path / "key"))
    starting.save(weights, tmp_path / "run")
    assert SECRET.tobytes() in (tmp_path / "open" / starting.START).read_bytes()
    assert SECRET.tobytes()[100:200] not in (tmp_path / "run" / starting.START).read_bytes()
    assert starting.load(tmp_path / "run", key).arrays["w"].tobytes() == SECRET.tobytes()
    with pytest.raises(BadInput, match="in the clear"):
        starting.load(tmp_path / "open", key)


def test_killed_and_resumed_with_the_same_bits_as_in_the_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SCAFFOLD, so that silos keep state, too; driver and silos with a key."""
    undisturbed = run(tmp_path / "open").digest
    make_key(tmp_path / "key")
    monkeypatch.setenv(STORE_KEY, str(tmp_path / "key"))
    command = [sys.executable, "-m", "tests.support.quadratic_run", str(tmp_path / "killed")]
    faults = ["checkpoint.files:2", "commit.done:2", "silo.trained:6"]
    done = subprocess.run([*command, *faults], capture_output=True, text=True, check=True)
    for each in map(json.loads, done.stdout.splitlines()):
        assert (each["killed"], each["again"], each["digest"]) == (-signal.SIGKILL, 0, undisturbed)
    clear = {each for each in (tmp_path / "killed").rglob("*.safetensors") if not is_sealed(each)}
    assert not clear and len(list((tmp_path / "killed").rglob(STATE))) >= 9


def is_sealed(path: Path) -> bool:
    return path.read_bytes().startswith(at_rest.MAGIC)


# The silo's side


def write_state(folder: Path, key: Key | None) -> Path:
    SiloState(folder, key).save(0, {"x": SECRET}, -1)
    return folder / "v000000.safetensors"


def write_training(folder: Path, key: Key | None) -> Path:
    MidRound(folder, "work", key).save(3, {"x": SECRET}, {"step": 3})
    return folder / FILE


def write_model(folder: Path, key: Key | None) -> Path:
    KeptModels(folder, key).keep("run", {"x": SECRET}, {"version": 1})
    return KeptModels(folder, key).find("run")[0]


def read_state(folder: Path, key: Key | None) -> Any:
    return SiloState(folder, key).after(0).get("x")


def read_training(folder: Path, key: Key | None) -> Any:
    found = MidRound(folder, "work", key).load()
    return found and found[0]["x"]


def read_model(folder: Path, key: Key | None) -> Any:
    return safetensors.numpy.load(KeptModels(folder, key).plain("run"))["x"]


Writes, Reads = Callable[[Path, Key | None], Path], Callable[[Path, Key | None], Any]


@pytest.mark.parametrize(
    ("write", "read"),
    [(write_state, read_state), (write_training, read_training), (write_model, read_model)],
    ids=["state", "training", "model"],
)
def test_what_a_silo_keeps(write: Writes, read: Reads, tmp_path: Path) -> None:
    assert SECRET.tobytes()[:64] in write(tmp_path / "open", None).read_bytes()
    path = write(tmp_path / "silo", KEY)
    assert SECRET.tobytes()[:64] not in path.read_bytes()
    assert read(tmp_path / "silo", KEY).tobytes() == SECRET.tobytes()
    with pytest.raises(BadInput, match="another key"):
        read(tmp_path / "silo", OTHER)
    with pytest.raises(BadInput, match="encrypted; its key is 'at_rest'"):
        read(tmp_path / "silo", None)
    assert path.exists(), "for want of a key nothing is thrown away"


def test_a_changed_state_is_none_and_a_changed_training_begins_anew(tmp_path: Path) -> None:
    state = SiloState(tmp_path / "run", KEY)
    for version in (0, 1):
        state.save(version, {"x": SECRET + version}, version - 1)
    flip(tmp_path / "run" / "v000001.safetensors", -1)
    assert state.after(1)["x"][0] == 0
    flip(write_training(tmp_path / "run", KEY), -1)
    assert read_training(tmp_path / "run", KEY) is None


def test_silo_yaml_names_the_key(tmp_path: Path) -> None:
    made = make_key(tmp_path / "key")
    text = "name: a\ndatasets: {d: {path: x.csv}}\n"
    (tmp_path / "silo.yaml").write_text(text)
    assert ConfiguredSite(tmp_path / "silo.yaml").key is None
    (tmp_path / "silo.yaml").write_text(text + "at_rest: {key: {file: key}}\n")
    key = ConfiguredSite(tmp_path / "silo.yaml").key
    assert key is not None and key.id == made.id
