"""Keys that two silos share and the driver between them does not have.

Each silo makes an X25519 key (RFC 7748) for a run. Two silos' keys give a root (HKDF, RFC 5869), from which both
derive what they need: the key of a mask, or of a box (ChaCha20-Poly1305, RFC 8439) that the driver carries from one
to the other without being able to read or change it.
"""

from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

KEY_BYTES = 32


class BadKeys(ValueError):
    """Keys or a box that no honest party would send."""

    def __init__(self, reason: str, of: str = "") -> None:
        """``of``: whose they are."""
        super().__init__(reason)
        self.of = of


class OwnKey:
    """A silo's key for one run. It lives in memory only: a process that starts anew cannot read old boxes."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def roots(self, own: str, keys: Mapping[str, bytes]) -> dict[str, bytes]:
        """The root shared with each of the others, from everybody's public keys, the own one among them.

        Raises `BadKeys` for keys with which somebody could be impersonated or a root be known to a third party: the
        own key altered or missing, two silos with one key, a key whose shared secret is zero whatever ours is.
        """
        if keys.get(own) != self.public:
            raise BadKeys(f"the key said to be that of {own} is not the one that it made")
        owner = {self.public: own}
        for peer in sorted(keys.keys() - {own}):
            if owner.setdefault(keys[peer], peer) != peer:
                raise BadKeys(f"{peer} is said to have the key of {owner[keys[peer]]}", peer)
        return {peer: self._root(peer, key) for peer, key in keys.items() if peer != own}

    def _root(self, peer: str, key: bytes) -> bytes:
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(key))
        except ValueError as error:  # of another length, or of small order: RFC 7748, section 6.1
            raise BadKeys(f"the key of {peer} is no usable X25519 key", peer) from error
        both = b"".join(sorted((self.public, key)))
        return HKDF(hashes.SHA256(), KEY_BYTES, None, b"siloray pair" + both).derive(shared)


def derived(secret: bytes, purpose: str, tag: bytes, length: int = KEY_BYTES) -> bytes:
    """A key for one purpose in the sum with this tag; other purposes and tags give keys unrelated to it."""
    return HKDFExpand(hashes.SHA256(), length, b"siloray " + purpose.encode() + b"\0" + tag).derive(secret)


def boxed(root: bytes, tag: bytes, sender: str, receiver: str, content: bytes) -> bytes:
    """Encrypted from sender to receiver. Once for a tag and direction: the key is used with one nonce."""
    return _cipher(root, tag, sender, receiver).encrypt(bytes(12), content, _bound(tag, sender, receiver))


def unboxed(root: bytes, tag: bytes, sender: str, receiver: str, box: bytes) -> bytes:
    """What the sender put in. Raises `BadKeys` for a box that was altered, or made for another sum or receiver."""
    try:
        return _cipher(root, tag, sender, receiver).decrypt(bytes(12), box, _bound(tag, sender, receiver))
    except InvalidTag as error:
        raise BadKeys(
            f"the box from {sender} was altered on its way, or belongs to another sum", sender
        ) from error


def _cipher(root: bytes, tag: bytes, sender: str, receiver: str) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(derived(root, f"box {sender} {receiver}", tag))


def _bound(tag: bytes, sender: str, receiver: str) -> bytes:
    return b"|".join((tag, sender.encode(), receiver.encode()))
