"""FLARE's homomorphic encryption, as its own filters do it: run by `benchmarks.encrypted_sum`, in FLARE's environment.

    python benchmarks/flare_he.py VECTORS.npy REPEATS

The context is that of its `HEBuilder` (CKKS, 8192, [60, 40, 40], scale 2^40, symmetric). A client runs
`HEModelEncryptor.encryption` and `serialize_nested_dict` (of `HEModelSerializeFilter`); the server
`deserialize_nested_dict` and the additions of `HEInTimeAccumulateWeightedAggregator`; a client then
`HEModelDecryptor.decryption`. Seconds are of CPU. Prints JSON.
"""

import json
import logging
import sys
from time import process_time

import numpy as np
import tenseal as ts
from nvflare import __version__
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.he.homomorphic_encrypt import deserialize_nested_dict, serialize_nested_dict
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.lighter.impl.he import HEBuilder


def main() -> None:
    logging.disable(logging.CRITICAL)
    vectors, repeats = np.load(sys.argv[1]), int(sys.argv[2])
    builder = HEBuilder()
    builder.initialize(None, None)
    client, server = (
        ts.context_from(builder.get_serialized_context(is_client)) for is_client in (True, False)
    )
    seconds: dict = {"encrypt": [], "serialise": [], "add": [], "decrypt": []}
    for _ in range(repeats):
        sealed = [sealed_by(client, vector, seconds) for vector in vectors[:2]]
        began = process_time()
        total, other = (deserialize_nested_dict(dict(each), server)["params"] for each in sealed)
        total += other
        seconds["add"].append((process_time() - began) / 2)
        answer = total.serialize()
        filter_ = HEModelDecryptor()
        filter_.tenseal_context = client
        began = process_time()
        opened = filter_.decryption({"params": answer}, {"params": True}, FLContext())
        seconds["decrypt"].append(process_time() - began)
    error = float(np.abs(np.asarray(opened["params"]) - vectors[:2].sum(axis=0, dtype=np.float64)).max())
    bytes_up, bytes_down = len(sealed[0]["params"]), len(answer)
    print(
        json.dumps(
            {
                "version": f"{__version__}, TenSEAL {ts.__version__}",
                "seconds": {name: min(each) for name, each in seconds.items()},
                "bytes_up": bytes_up,
                "bytes_down": bytes_down,
                "error": error,
            }
        )
    )


def sealed_by(context: ts.Context, vector: np.ndarray, seconds: dict) -> dict:
    filter_ = HEModelEncryptor(weigh_by_local_iter=False)
    filter_.tenseal_context, filter_.encrypt_layers = context, [True]
    began = process_time()
    encrypted, _ = filter_.encryption({"params": vector}, FLContext())
    seconds["encrypt"].append(process_time() - began)
    began = process_time()
    sealed = serialize_nested_dict(encrypted)
    seconds["serialise"].append(process_time() - began)
    return sealed


main()
