"""The other side of `benchmarks.secure_sum`: the functions of Flower's SecAgg+, called in their own order on the same
vectors. Run by an interpreter that has Flower and not Siloray; prints one line of JSON.

Seconds are of the processor, the least of several repeats.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from time import process_time
from typing import Any

import numpy as np

arrays = import_module("flwr.common.secure_aggregation.ndarrays_arithmetic")
mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
quantization = import_module("flwr.common.secure_aggregation.quantization")
shamir = import_module("flwr.common.secure_aggregation.crypto.shamir")
utils = import_module("flwr.common.secure_aggregation.secaggplus_utils")
flower = import_module("flwr.common")
Key = import_module("flwr.common.secure_aggregation.secaggplus_constants").Key

CLIP, LEVELS, MODULUS, MOST = 8.0, 1 << 22, 1 << 32, 1000.0
"""As Flower has them by default."""


def vector(silo: int, size: int) -> Any:
    return np.random.default_rng(silo).standard_normal(size, np.float32) * np.float32(0.1)


def least(repeats: int, work: Callable[[], object]) -> tuple[float, Any]:
    """Seconds, and what the last repeat gave."""
    seconds, found = [], None
    for _ in range(repeats):
        found = None
        began = process_time()
        found = work()
        seconds.append(process_time() - began)
    return min(seconds), found


def main(size: int, num: int, threshold: int, repeats: int) -> dict[str, Any]:
    nodes = list(range(1, num + 1))
    settings = {
        Key.SAMPLE_NUMBER: num, Key.SHARE_NUMBER: num, Key.THRESHOLD: threshold, Key.CLIPPING_RANGE: CLIP,
        Key.TARGET_RANGE: LEVELS, Key.MOD_RANGE: MODULUS, Key.MAX_WEIGHT: MOST,
    }  # fmt: skip
    states = {node: mod.SecAggPlusState() for node in nodes}
    public = {}
    for node, state in states.items():
        state.nid = node
        answer = mod._setup(state, settings)
        public[str(node)] = (answer[Key.PUBLIC_KEY_1], answer[Key.PUBLIC_KEY_2])
    sharing, _ = least(repeats, lambda: mod._share_keys(states[1], public))
    boxes: dict[int, list[tuple[int, bytes]]] = {node: [] for node in nodes}
    for node, state in states.items():
        shared = mod._share_keys(state, public)
        for to, box in zip(shared[Key.DESTINATION_LIST], shared[Key.CIPHERTEXT_LIST], strict=True):
            boxes[to].append((node, box))

    def masked(node: int, values: Any) -> list[bytes]:
        sources, texts = zip(*boxes[node], strict=True)
        parameters = flower.ndarrays_to_parameters([values])
        config = {Key.CIPHERTEXT_LIST: list(texts), Key.SOURCE_LIST: list(sources)}
        return list(
            mod._collect_masked_vectors(states[node], config, int(MOST), parameters)[Key.MASKED_PARAMETERS]
        )

    own = vector(1, size)
    seconds, upload = least(repeats, lambda: masked(1, own))
    active = nodes[:-1]
    sent = [upload, *(masked(node, vector(node, size)) for node in active[1:])]
    plain = np.sum([vector(node, size) for node in active], axis=0, dtype=np.float64)
    adding, total = least(2, lambda: added(sent))

    told = [
        mod._unmask(states[node], {Key.ACTIVE_NODE_ID_LIST: active, Key.DEAD_NODE_ID_LIST: [num]})
        for node in active
    ]
    shares: dict[int, list[bytes]] = {node: [] for node in nodes}
    for each in told:
        for node, share in zip(each[Key.NODE_ID_LIST], each[Key.SHARE_LIST], strict=True):
            shares[node].append(share)
    unmasking, mean = least(repeats, lambda: unmasked(total, shares, active, public, num))
    error = float(np.abs(mean - plain / len(active)).max())
    assert error < 4 * CLIP / LEVELS, error
    return {
        "version": metadata.version("flwr"),
        "silo_s": sharing + seconds,
        "upload_bytes": sum(map(len, upload)),
        "adding_s": adding,
        "unmasking_s": unmasking,
        "error": error,
    }


def added(sent: list[list[bytes]]) -> Any:
    """As the server's workflow does it in the stage before."""
    total = None
    for each in sent:
        rows = [flower.bytes_to_ndarray(text) for text in each]
        total = rows if total is None else arrays.parameters_addition(total, rows)
    return arrays.parameters_mod(total, MODULUS)


def unmasked(total: Any, shares: dict[int, list[bytes]], active: list[int], public: Any, dropped: int) -> Any:
    """As the server's workflow does it in its last stage."""
    shapes = arrays.get_parameters_shape(total)
    for node, given in shares.items():
        secret = shamir.combine_shares(given)
        if node in active:
            total = arrays.parameters_subtraction(total, utils.pseudo_rand_gen(secret, MODULUS, shapes))
            continue
        for other in active:
            shared = mod.generate_shared_key(
                mod.bytes_to_private_key(secret), mod.bytes_to_public_key(public[str(other)][0])
            )
            mask = utils.pseudo_rand_gen(shared, MODULUS, shapes)
            change = arrays.parameters_addition if dropped > other else arrays.parameters_subtraction
            total = change(total, mask)
    ratio, values = arrays.factor_extract(arrays.parameters_mod(total, MODULUS))
    (mean,) = quantization.dequantize(values, CLIP, LEVELS)
    mean += -(len(active) - 1) * CLIP
    mean *= LEVELS / ratio
    return mean


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:5]))))
