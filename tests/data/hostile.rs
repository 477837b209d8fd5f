//! Every way in which a dataset can be wrong, with its message.

use supernet::data::{LoadOptions, load};

use super::fixtures::*;

#[test]
fn missing_paths_and_wrong_kinds() {
    let folder = Folder::new();
    for kind in ["idx", "folder", "cifar", "npz", "meta-album"] {
        let spec = format!("{kind}:{}", folder.join("none").display()).parse().unwrap();
        let error = load(&spec, &LoadOptions::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_contains(&error.to_string(), "none: cannot read: No such file");
    }
    let file = folder.write("file", "x");
    for kind in ["idx", "folder", "cifar", "meta-album"] {
        let error = load(&format!("{kind}:{}", file.display()).parse().unwrap(), &LoadOptions::default()).unwrap_err();
        assert_contains(&error.to_string(), &format!("is not a folder; `{kind}:` takes the folder"));
    }
    let npz = format!("npz:{}", folder.path().display()).parse().unwrap();
    assert_contains(&load(&npz, &LoadOptions::default()).unwrap_err().to_string(), "is not a regular file");
}

#[test]
fn senseless_options() {
    let folder = Folder::new();
    let message = |options: LoadOptions| {
        let error = folder.load_with("idx", &options).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let base = LoadOptions::default;
    assert_contains(&message(LoadOptions { size: Some((0, 4)), ..base() }), "size 0x4");
    assert_contains(&message(LoadOptions { size: Some((usize::MAX, 4)), ..base() }), "1 pixel to 64 million");
    assert_contains(&message(LoadOptions { channels: Some(5), ..base() }), "5 channels");
    for test_fraction in [0.0, 1.0, -1.0, f64::NAN] {
        assert_contains(&message(LoadOptions { test_fraction, ..base() }), "must be between 0 and 1");
    }
}

#[test]
fn folders_without_data() {
    let folder = Folder::new();
    assert_contains(&folder.message("idx"), "holds no train-images-idx3-ubyte");
    assert_contains(&folder.message("folder"), "holds no class folders");
    assert_contains(&folder.message("cifar"), "holds neither data_batch_1.bin");
    assert_contains(&folder.message("meta-album"), "labels.csv: cannot read: No such file");
}

#[test]
fn bad_idx_files() {
    let folder = Folder::new();
    mnist(&folder);
    let images = "train-images-idx3-ubyte";
    let sound = std::fs::read(folder.join(images)).unwrap();
    let case = |bytes: &[u8], part: &str| {
        folder.write(images, bytes);
        let message = folder.message("idx");
        assert_contains(&message, part);
        assert_contains(&message, images);
    };
    case(&[], "ends too early: truncated");
    case(&sound[..10], "ends too early: truncated");
    case(&sound[..30], "14 of the 24 bytes that the header declares: truncated");
    case(&[&sound[..], &[0]].concat(), "more than the 24 bytes that the header declares");
    case(b"GIF89a", "is not an IDX file of the expected kind: it starts with 0x47494638, not 0x00000803");
    case(&idx(&[6], &[0; 6]), "it starts with 0x00000801");
    case(&idx(&[0, 2, 2], &[]), "holds no images");
    case(&idx(&[6, 0, 2], &[]), "zero-size image (0x2)");
    case(&idx(&[u32::MAX; 3], &[]), "declares 4294967295 items");
    case(&idx(&[1, u32::MAX, u32::MAX], &[]), "above the limit of 4 GiB");
    case(&idx(&[6, 2, 2, 7], &[0; 168]), "7 channels: images have 1 to 4");

    folder.write(images, idx(&[5, 2, 2], &[0; 20]));
    let message = folder.message("idx");
    assert_contains(&message, "train-labels-idx1-ubyte: 6 labels for the 5 images of");

    folder.write(images, sound);
    folder.write("train-labels-idx1-ubyte", idx(&[6], &[0, 1, 3, 0, 1, 3]));
    assert_contains(&folder.message("idx"), "class `2` (label 2) is empty");
    folder.write("train-labels-idx1-ubyte", idx(&[6], &[0; 6]));
    assert_contains(&folder.message("idx"), "only one class (`0`)");
    folder.write("train-labels-idx1-ubyte", idx(&[6], &[0, 1, 0, 1, 0, 1]));
    assert_contains(&folder.message("idx"), "test image 0 has label 2, beyond the 2 classes");
    std::fs::remove_file(folder.join("train-labels-idx1-ubyte")).unwrap();
    assert_contains(&folder.message("idx"), "has no train-labels-idx1-ubyte beside it");

    mnist(&folder);
    folder.write("t10k-images-idx3-ubyte", idx(&[3, 1, 2], &[0; 6]));
    assert_contains(&folder.message("idx"), "training images are 2x2x1, test images 1x2x1: pass --size");
    folder.write("letters-train-images-idx3-ubyte", idx(&[3, 1, 2], &[0; 6]));
    assert_contains(&folder.message("idx"), "could both be meant");
}

#[test]
fn bad_gzip_files() {
    let folder = Folder::new();
    mnist(&folder);
    let sound = std::fs::read(folder.join("train-images-idx3-ubyte")).unwrap();
    std::fs::remove_file(folder.join("train-images-idx3-ubyte")).unwrap();
    let case = |bytes: &[u8], part: &str| {
        folder.write("train-images-idx3-ubyte.gz", bytes);
        assert_contains(&folder.message("idx"), part);
    };
    // Incompressible, so that cutting it cuts data.
    let noise: Vec<u8> = (0..24u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let packed = gz(&idx(&[6, 2, 2], &noise));
    case(&packed[..5], "truncated");
    case(&packed[..packed.len() - 20], "truncated");
    case(&sound, "damaged (invalid gzip header)");
    let mut flipped = packed.clone();
    let at = flipped.len() - 6;
    flipped[at] ^= 1;
    case(&flipped, "damaged (");
    // A bomb: two images declared, 50 MB behind them. It is given up after the first byte too many.
    case(&gz(&idx(&[2, 2, 2], &vec![0; 50_000_000])), "more than the 8 bytes that the header declares");
    // The other way round: 4 GiB declared, nothing behind it.
    case(&gz(&idx(&[1 << 20, 64, 64], &[])), "0 of the 4294967296 bytes");
}

#[test]
fn bad_cifar_files() {
    let folder = Folder::new();
    folder.write("data_batch_1.bin", vec![0; 3073]);
    folder.write("data_batch_3.bin", vec![0; 3073]);
    assert_contains(&folder.message("cifar"), "data_batch_2.bin: is missing, though data_batch_3.bin is there");
    std::fs::remove_file(folder.join("data_batch_3.bin")).unwrap();
    folder.write("data_batch_1.bin", vec![0; 3000]);
    assert_contains(&folder.message("cifar"), "3000 bytes are not a whole number of records of 3073");
    folder.write("data_batch_1.bin", vec![10; 3073]);
    assert_contains(&folder.message("cifar"), "record 0 has label 10, beyond the 10 classes");
    folder.write("data_batch_1.bin", vec![0; 3073]);
    assert_contains(&folder.message("cifar"), "class `1` (label 1) is empty");
    folder.write("batches.meta.txt", "cat\ncat\n");
    assert_contains(&folder.message("cifar"), "2 class names, expected 10");
    folder.write("batches.meta.txt", "cat\n".repeat(10));
    assert_contains(&folder.message("cifar"), "two classes are named `cat`");
}

#[test]
fn bad_npz_archives() {
    let folder = Folder::new();
    let images = || npy("|u1", &[4, 2, 2], &[1; 16]);
    let labels = || npy("|u1", &[4], &[0, 1, 0, 1]);
    let case = |bytes: &[u8], part: &str| {
        folder.write("a.npz", bytes);
        assert_contains(&folder.message("npz"), part);
    };
    let sound = npz(&[("images", images()), ("labels", labels())]);
    case(&[], "is not a readable .npz archive");
    case(&sound[..sound.len() / 2], "is not a readable .npz archive");
    case(b"not a zip file at all, but long enough to be one", "is not a readable .npz archive");
    let mut flipped = sound.clone();
    // Inside the compressed data of the first entry, after its local header and name.
    flipped[30 + "images.npy".len() + 20] ^= 0x55;
    case(&flipped, "damaged (");
    case(&npz(&[("pictures", images())]), "has no images and labels: expected train_images");
    case(&npz(&[("images", images())]), "has `images` but no `labels`");

    let bad_images = |array: Vec<u8>, part: &str| case(&npz(&[("images", array), ("labels", labels())]), part);
    bad_images(npy("<f4", &[4, 1, 1], &[0; 16]), "array `images` has type `<f4`; integers are needed");
    bad_images(npy("<i4", &[4, 1, 1], &[0; 16]), "array `images` is not uint8");
    bad_images(npy("|O", &[4, 1, 1], &[0; 16]), "has type `|O`");
    bad_images(npy("|u1", &[4], &[0; 4]), "has shape [4], not (images, height, width[, channels])");
    bad_images(npy("|u1", &[4, 1, 1, 5], &[0; 20]), "5 channels: images have 1 to 4");
    bad_images(npy("|u1", &[4, 0, 1], &[]), "zero-size image (0x1)");
    bad_images(npy("|u1", &[0, 1, 1], &[]), "array `images` holds no images");
    bad_images(npy("|u1", &[1, 60_000, 60_000], &[]), "0 of the 3600000000 bytes that the header declares");
    bad_images(npy("|u1", &[usize::MAX, usize::MAX], &[]), "above the limit of 4 GiB");
    bad_images(npy("|u1", &[4, 2, 2], &[1; 15]), "15 of the 16 bytes that the header declares: truncated");
    bad_images(npy("|u1", &[4, 2, 2], &[1; 17]), "more than the 16 bytes");
    bad_images(b"PK\x03\x04 nothing".to_vec(), "does not start as a .npy file does");
    bad_images(b"\x93NUMPY\x09\x00".to_vec(), ".npy version 9; versions 1 to 3 are known");
    bad_images(b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "declares a header of 4294967295 bytes");
    bad_images(npy_with_header("{'shape': 3}", &[]), "the .npy header is not one of NumPy's");
    let fortran = "{'descr': '|u1', 'fortran_order': True, 'shape': (4, 2, 2), }";
    bad_images(npy_with_header(fortran, &[1; 16]), "is in Fortran order; save numpy.ascontiguousarray(images)");

    let bad_labels = |array: Vec<u8>, part: &str| case(&npz(&[("images", images()), ("labels", array)]), part);
    bad_labels(npy("|u1", &[3], &[0, 1, 0]), "`labels`: 3 labels for 4 images");
    bad_labels(npy("|u1", &[4, 2], &[0; 8]), "has shape [4, 2], not (4,) or (4, 1)");
    bad_labels(npy("|i1", &[4], &[0, 1, 0, 0xff]), "label -1 of image 3 is not in 0..65536");
    bad_labels(npy("<u4", &[4], &[0xff; 16]), "label 4294967295 of image 0");
    bad_labels(npy("|u1", &[4], &[0; 4]), "only one class (`0`)");

    let names = |text: &[u8], part: &str| {
        let names = npy("|u1", &[text.len()], text);
        case(&npz(&[("images", images()), ("labels", labels()), ("class_names", names)]), part);
    };
    names(b"a", "only one class (`a`)");
    names(b"a\nb\nc", "class `c` (label 2) is empty");
    names(b"same\nsame", "two classes are named `same`");
    names(b"a\n \n", "a class has no name");
    names(b"a\n\xff", "array `class_names` is not UTF-8");

    let beyond = npz(&[
        ("images", images()),
        ("labels", npy("|u1", &[4], &[0, 1, 2, 1])),
        ("class_names", npy("|u1", &[3], b"a\nb")),
    ]);
    case(&beyond, "training image 2 has label 2, beyond the 2 classes");
}

#[test]
fn bad_class_folders() {
    let folder = Folder::new();
    folder.write("cat/1.png", grey_png(3, 4, 0));
    folder.write("cat/2.png", grey_png(3, 4, 0));
    assert_contains(&folder.message("folder"), "only one class (`cat`)");
    std::fs::create_dir(folder.join("dog")).unwrap();
    assert_contains(&folder.message("folder"), "class `dog` is empty: no PNG or JPEG file");
    folder.write("dog/readme.txt", "x");
    assert_contains(&folder.message("folder"), "class `dog` is empty: no PNG or JPEG file");
    std::fs::create_dir_all(folder.join("dog/1/2/3/4/5")).unwrap();
    assert_contains(&folder.message("folder"), "is nested too deeply");

    let parts = Folder::new();
    class_folders(&parts, "test");
    assert_contains(&parts.message("folder"), "but no folder `train` beside it");
    class_folders(&parts, "train");
    parts.write("train/eel/1.png", grey_png(3, 4, 0));
    assert_contains(&parts.message("folder"), "test: has no class folder `eel`, which");
    std::fs::remove_dir_all(parts.join("train/eel")).unwrap();
    parts.write("test/fox/1.png", grey_png(3, 4, 0));
    assert_contains(&parts.message("folder"), "train: has no class folder `fox`, which");

    let few = Folder::new();
    few.write("a/1.png", grey_png(1, 1, 0));
    few.write("b/1.png", grey_png(1, 1, 0));
    assert_contains(&few.message("folder"), "2 images are too few to split off a test part");
}

#[test]
fn bad_image_files() {
    let folder = Folder::new();
    class_folders(&folder, "");
    let noise = image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, x as u8]));
    let png = encode(noise.clone().into(), image::ImageFormat::Png);
    let jpeg = encode(noise.into(), image::ImageFormat::Jpeg);
    let bad = |bytes: &[u8], part: &str| {
        folder.write("dog/bad.png", bytes);
        let message = folder.message("folder");
        assert_contains(&message, "dog/bad.png: ");
        assert_contains(&message, part);
    };
    bad(b"", "is empty, not an image");
    bad(b"hello, I am text", "is neither PNG nor JPEG in spite of its name");
    bad(&png_header(60_000, 60_000), "an image of 60000x60000 pixels is above the limit of 64 million");
    bad(&png_header(0, 7), "zero-size image (0x7)");
    bad(&png_header(7, 0), "zero-size image (7x0)");
    bad(&png_header(u32::MAX, u32::MAX), "above the limit of 64 million");
    bad(&png[..12], "cannot be decoded");
    bad(&png_header(40, 40), "cannot be decoded");
    bad(&[0xff, 0xd8, 0xff], "cannot be decoded");
    bad(&jpeg[..jpeg.len() / 2], "ends before the JPEG end-of-image marker: truncated");

    // What only decoding finds out, once the sizes agree.
    let options = LoadOptions { size: Some((3, 4)), ..Default::default() };
    folder.write("dog/bad.png", &png[..png.len() / 2]);
    let message = folder.load_with("folder", &options).unwrap_err().to_string();
    assert_contains(&message, "dog/bad.png: cannot be decoded");
    assert_contains(&message, "damaged or truncated");
}

#[test]
fn the_first_bad_image_in_order_is_named() {
    let folder = Folder::new();
    class_folders(&folder, "");
    for name in ["cat/3.png", "dog/1.png", "dog/4.png"] {
        folder.write(name, "x");
    }
    for _ in 0..5 {
        assert_contains(&folder.message("folder"), "cat/3.png");
    }
}

#[test]
fn bad_meta_album_tables() {
    let folder = Folder::new();
    meta_album(&folder);
    let case = |table: &[u8], part: &str| {
        folder.write("labels.csv", table);
        let message = folder.message("meta-album");
        assert_contains(&message, "labels.csv: ");
        assert_contains(&message, part);
    };
    case(b"", "is empty; expected a line of column names");
    case(b"FILE_NAME,CATEGORY\n", "lists no images: the dataset is empty");
    case(b"FILE_NAME,LABEL\n0.png,a\n", "has no column `CATEGORY`, only [\"FILE_NAME\", \"LABEL\"]");
    case(b"FILE_NAME,CATEGORY\n0.png,a\n1.png,\xff\xfe\n", "line 3 is not UTF-8");
    case(b"FILE_NAME,CATEGORY\n0.png,a\nnone.png,b\n", "line 3: there is no file `none.png` in");
    case(b"FILE_NAME,CATEGORY\n0.png,a\n0.png,b\n", "line 3: `0.png` is already on line 2");
    case(b"FILE_NAME,CATEGORY\n0.png\n", "line 2 has 1 fields, the header 2");
    case(b"FILE_NAME,CATEGORY\n0.png,\n", "line 2: no category for `0.png`");
    case(b"FILE_NAME,CATEGORY\n../labels.csv,a\n", "line 2: `../labels.csv` is not a path inside the dataset");
    case(b"FILE_NAME,CATEGORY\n/etc/hosts,a\n", "is not a path inside the dataset");
    case(b"FILE_NAME,CATEGORY\n,a\n", "line 2: `` is not a path inside the dataset");
    case(b"FILE_NAME,CATEGORY\n\"0.png,a\n", "line 2: a quote is never closed");

    folder.write("labels.csv", "FILE_NAME,CATEGORY\n0.png,a\n1.png,a\n");
    assert_contains(&folder.message("meta-album"), "only one class (`a`)");
    folder.write("info.json", "{\"image_column_name\": 3}");
    assert_contains(&folder.message("meta-album"), "info.json: is not the expected JSON");
}

#[test]
fn channels_that_cannot_be_made() {
    let folder = Folder::new();
    mnist(&folder);
    let options = LoadOptions { channels: Some(4), ..Default::default() };
    let message = folder.load_with("idx", &options).unwrap_err().to_string();
    assert_contains(&message, "images of 1 channels cannot become images of 4; use 1 or 3");
    let folder = Folder::new();
    class_folders(&folder, "");
    let message = folder.load_with("folder", &options).unwrap_err().to_string();
    assert_contains(&message, "1 channels cannot become 4; use 1 or 3");
}

#[test]
fn a_missing_builtin_says_where_it_was_looked_for() {
    // `Spec` has no such name, but its variant can be built by hand.
    let spec = supernet::data::Spec::Builtin("none".into());
    let error = load(&spec, &LoadOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert_contains(&error.to_string(), "built-in dataset `none` was not found; tried ");
    assert_contains(&error.to_string(), "none.npz");
}
