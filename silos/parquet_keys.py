"""Parquet with modular encryption: the data keys of a file are wrapped with the silo's key, and lie in the file.

Only AES_GCM_V1 with an encrypted footer is read and written. AES_GCM_CTR_V1 encrypts pages without authentication, and
gives wrong data silently where a byte was changed.
"""

import base64
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orchestrator.at_rest import Key
from orchestrator.core.errors import BadInput
from silos.lean_arrow import ds

ALGORITHM = "AES_GCM_V1"
_ENCRYPTED, _CLEAR = b"PARE", b"PAR1"
_GCM = b"\x1c\x1c"
"""How the description of an encrypted file begins in Thrift's compact protocol: field 1 a struct, the algorithm, in
which field 1 is AES_GCM_V1 (field 2 would be AES_GCM_CTR_V1, ``1c 2c``)."""
_DESCRIPTION = 1024
_LONGEST_HEADER = 1 << 20
"""An encrypted page begins with the length of its header in four bytes; the first four of a page in the clear, as a
number, are ``0x..15..15`` (two fields of type i32)."""
_NONCE = 12
_PUBLIC = "a file of the data set cannot be decrypted"


class Wrapping(pe.KmsClient):
    """Wraps data keys with AES-256-GCM; the name of the silo's key is authenticated, too."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        self._cipher = AESGCM(key.derived(b"parquet"))

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return base64.b64encode(
            nonce + self._cipher.encrypt(nonce, key_bytes, master_key_identifier.encode())
        )

    def unwrap_key(self, wrapped_key: bytes | str, master_key_identifier: str) -> bytes:
        try:
            wrapped = base64.b64decode(wrapped_key, validate=True)
            return self._cipher.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], master_key_identifier.encode())
        except (InvalidTag, ValueError):
            raise OSError("the wrapped key was changed") from None


class ParquetKeys:
    """What pyarrow needs to read and write files under one key."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._factory = pe.CryptoFactory(lambda _: Wrapping(key))
        self._connection = pe.KmsConnectionConfig()

    def check(self, path: Path) -> None:
        """Raises `BadInput` for a file that is not encrypted as a whole with AES_GCM_V1 under this key."""
        kind, description = _tail(path)
        remedy = "'siloray silo encrypt' makes an encrypted copy"
        if kind == _CLEAR:
            what = f"{path}: not encrypted, or its footer is not; {remedy}"
            raise BadInput(what, "a file of the data set is not encrypted")
        if kind == _ENCRYPTED and not description.startswith(_GCM):
            what = f"{path}: not encrypted with {ALGORITHM}: a changed byte would go unnoticed; {remedy}"
            raise BadInput(what, f"a file of the data set is not encrypted with {ALGORITHM}")
        if kind == _ENCRYPTED and self._key.id.encode() not in description:
            raise BadInput(f"{path}: encrypted with another key than {self._key.id}", _PUBLIC)
        if kind == _ENCRYPTED:
            self._check_columns(path)

    def _check_columns(self, path: Path) -> None:
        """A writer may leave columns in the clear below an encrypted footer; each file's columns are all alike."""
        for name, offset in self._first_pages(path):
            with path.open("rb") as file:
                file.seek(offset)
                length = int.from_bytes(file.read(4), "little")
            if length > _LONGEST_HEADER:
                what = f"{path}: column '{name}' is not encrypted; 'siloray silo encrypt' makes an encrypted copy"
                raise BadInput(what, "a column of the data set is not encrypted")

    def _first_pages(self, path: Path) -> list[tuple[str, int]]:
        """Name and place of each column's first page; none where the file cannot be read, which is said later."""
        properties = self._factory.file_decryption_properties(self._connection, pe.DecryptionConfiguration())
        try:
            with pq.ParquetFile(path, decryption_properties=properties) as file:
                if not file.metadata.num_row_groups:
                    return []
                group = file.metadata.row_group(0)
                columns = [group.column(i) for i in range(group.num_columns)]
        except (pa.ArrowException, OSError, ValueError):
            return []
        return [
            (each.path_in_schema, each.dictionary_page_offset or each.data_page_offset) for each in columns
        ]

    def reading(self) -> Any:
        """The format of a `pyarrow.dataset`."""
        config = ds.ParquetDecryptionConfig(self._factory, self._connection, pe.DecryptionConfiguration())
        options = ds.ParquetFragmentScanOptions(decryption_config=config)
        return ds.ParquetFileFormat(default_fragment_scan_options=options)

    def writing(self) -> Any:
        """``encryption_properties`` of a new `pyarrow.parquet.ParquetWriter`: footer and every column."""
        config = pe.EncryptionConfiguration(
            footer_key=self._key.id,
            uniform_encryption=True,
            encryption_algorithm=ALGORITHM,
            plaintext_footer=False,
            data_key_length_bits=256,
            cache_lifetime=timedelta(0),
        )
        return self._factory.file_encryption_properties(self._connection, config)


def _tail(path: Path) -> tuple[bytes, bytes]:
    """The last four bytes, and the beginning of the footer before them, which says how it is encrypted."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        last = file.read(8)
        if len(last) < 8:
            return b"", b""
        file.seek(max(0, size - 8 - int.from_bytes(last[:4], "little")))
        return last[4:], file.read(_DESCRIPTION)
