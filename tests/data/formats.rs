//! Every format as it should be.

use image::ImageFormat;
use supernet::data::{Geometry, LoadOptions, contact_sheet, describe};

use super::fixtures::*;

fn has_note(notes: &[String], part: &str) -> bool {
    notes.iter().any(|note| note.contains(part))
}

#[test]
fn idx_plain_compressed_and_with_dots() {
    let plain = Folder::new();
    mnist(&plain);
    let data = plain.load("idx").unwrap();
    assert_eq!(data.train.geometry, Geometry { height: 2, width: 2, channels: 1 });
    assert_eq!(data.train.pixels, flat_images(&[0, 1, 2, 3, 4, 5], 4));
    assert_eq!((data.train.labels, data.test.labels), (vec![0, 1, 2, 0, 1, 2], vec![2, 1, 0]));
    assert_eq!(data.classes, ["0", "1", "2"]);
    assert!(data.notes.is_empty(), "{:?}", data.notes);

    let other = Folder::new();
    for name in ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"] {
        let bytes = gz(&std::fs::read(plain.join(&format!("{name}-ubyte"))).unwrap());
        other.write(&format!("emnist-{}-ubyte.gz", name.replace("-idx", ".idx")), bytes);
    }
    assert_eq!(other.load("idx").unwrap().identity, data.identity);
}

#[test]
fn idx_without_a_test_part_and_with_labels_from_one() {
    let folder = Folder::new();
    let labels: Vec<u8> = (0..20).map(|i| 1 + i % 2).collect();
    folder.write("train-images-idx3-ubyte", idx(&[20, 1, 1], &[7; 20]));
    folder.write("train-labels-idx1-ubyte", idx(&[20], &labels));
    let data = folder.load("idx").unwrap();
    assert_eq!(data.classes, ["1", "2"]);
    assert_eq!((data.train.class_counts(2), data.test.class_counts(2)), (vec![8, 8], vec![2, 2]));
    assert!(has_note(&data.notes, "no test part found: 20 % split off, stratified, seed 0"), "{:?}", data.notes);
    assert!(has_note(&data.notes, "run from 1"));
}

#[test]
fn the_split_depends_on_its_seed_only() {
    let folder = Folder::new();
    folder.write("train-images-idx3-ubyte", idx(&[40, 1, 1], &(0..40).collect::<Vec<u8>>()));
    folder.write("train-labels-idx1-ubyte", idx(&[40], &[0, 1].repeat(20)));
    let with = |split_seed| folder.load_with("idx", &LoadOptions { split_seed, ..Default::default() }).unwrap();
    assert_eq!(with(1).identity, with(1).identity);
    assert_ne!(with(1).test.pixels, with(2).test.pixels);
}

#[test]
fn cifar_10_and_100_become_nhwc() {
    let record = |labels: &[u8]| [labels, &[1; 1024], &[2; 1024], &[3; 1024]].concat();
    let folder = Folder::new();
    let all: Vec<u8> = (0..10).flat_map(|class| record(&[class])).collect();
    folder.write("cifar-10-batches-bin/data_batch_1.bin", &all);
    folder.write("cifar-10-batches-bin/data_batch_2.bin", &all);
    folder.write("cifar-10-batches-bin/test_batch.bin", &all);
    let names: String = ('a'..='j').map(|name| format!("{name}\n")).collect();
    folder.write("cifar-10-batches-bin/batches.meta.txt", names + "\n");
    let data = folder.load("cifar").unwrap();
    assert_eq!((data.train.len(), data.test.len()), (20, 10));
    assert_eq!(data.train.image(13), [1, 2, 3].repeat(1024));
    assert_eq!((data.train.labels[13], &data.classes[3][..]), (3, "d"));

    let folder = Folder::new();
    let all: Vec<u8> = (0..100).flat_map(|class| record(&[7, class])).collect();
    folder.write("train.bin", &all);
    folder.write("test.bin", &all);
    let data = folder.load("cifar").unwrap();
    assert_eq!((data.classes.len(), data.train.labels[42]), (100, 42));
}

#[test]
fn npz_of_medmnist_merges_validation() {
    let folder = Folder::new();
    let part = |n: usize, labels: &[u8]| (npy("|u1", &[n, 2, 2, 3], &vec![9; n * 12]), npy("|u1", &[n, 1], labels));
    let (train, train_labels) = part(4, &[0, 1, 0, 1]);
    let (validation, validation_labels) = part(2, &[0, 1]);
    let (test, test_labels) = part(3, &[0, 1, 1]);
    let arrays = [
        ("train_images", train),
        ("train_labels", train_labels),
        ("val_images", validation),
        ("val_labels", validation_labels),
        ("test_images", test),
        ("test_labels", test_labels),
    ];
    folder.write("a.npz", npz(&arrays));
    let data = folder.load("npz").unwrap();
    assert_eq!((data.train.len(), data.test.len(), data.train.geometry.channels), (6, 3, 3));
    assert_eq!(data.name, "a");
    assert!(has_note(&data.notes, "2 images of the validation part"), "{:?}", data.notes);
}

#[test]
fn npz_labels_of_any_integer_type_and_names() {
    let labels: Vec<i64> = vec![0, 1, 2, 0, 1, 2];
    let little: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    let big: Vec<u8> = labels.iter().flat_map(|&label| (label as i16).to_be_bytes()).collect();
    let names = "red\nbl\u{e4}u\ngreen";
    for (images, key, labels) in [
        ("images", "labels", npy("<i8", &[6], &little)),
        ("x", "y", npy(">i2", &[6, 1], &big)),
        ("x_train", "y_train", npy("|i1", &[6], &[0, 1, 2, 0, 1, 2])),
    ] {
        let folder = Folder::new();
        let pixels = npy("|u1", &[6, 1, 1], &[0; 6]);
        let names = npy("|u1", &[names.len()], names.as_bytes());
        folder.write("a.npz", npz(&[(images, pixels), (key, labels), ("class_names", names)]));
        let data = folder.load("npz").unwrap();
        assert_eq!(data.classes, ["red", "bl\u{e4}u", "green"]);
        assert_eq!((data.train.len(), data.test.len()), (3, 3), "every class in both parts");
    }
}

#[test]
fn more_than_65536_images() {
    let n = 70_000;
    let folder = Folder::new();
    let labels: Vec<u8> = (0..n).map(|i| (i % 2) as u8).collect();
    folder.write("a.npz", npz(&[("x", npy("|u1", &[n, 1, 1], &vec![3; n])), ("y", npy("|u1", &[n], &labels))]));
    let data = folder.load("npz").unwrap();
    assert_eq!((data.train.len(), data.test.len()), (56_000, 14_000));
}

#[test]
fn class_folders_with_and_without_parts() {
    let flat = Folder::new();
    class_folders(&flat, "");
    flat.write("cat/.DS_Store", "x");
    flat.write("cat/notes.txt", "x");
    flat.write("README.md", "x");
    flat.write(".cache/x.png", "x");
    let data = flat.load("folder").unwrap();
    assert_eq!(data.classes, ["cat", "dog"]);
    assert_eq!(data.train.geometry, Geometry { height: 3, width: 4, channels: 1 });
    assert_eq!((data.train.class_counts(2), data.test.class_counts(2)), (vec![4, 4], vec![1, 1]));
    assert!(has_note(&data.notes, "ignored 2 file(s)"), "{:?}", data.notes);

    let parts = Folder::new();
    class_folders(&parts, "train");
    class_folders(&parts, "val");
    let data = parts.load("folder").unwrap();
    assert_eq!((data.train.len(), data.test.len()), (10, 10));
    assert_eq!(data.train.pixels, flat_images(&[0, 1, 2, 3, 4, 100, 101, 102, 103, 104], 12));
    assert!(has_note(&data.notes, "the validation part is the test part"));

    class_folders(&parts, "test");
    let data = parts.load("folder").unwrap();
    assert_eq!((data.train.len(), data.test.len()), (20, 10));
}

#[test]
fn a_class_may_be_called_train() {
    let folder = Folder::new();
    class_folders(&folder, "");
    folder.write("train/a.png", grey_png(3, 4, 1));
    folder.write("train/b.png", grey_png(3, 4, 1));
    assert_eq!(folder.load("folder").unwrap().classes, ["cat", "dog", "train"]);
}

#[test]
fn mixed_sizes_and_kinds_meet_in_one_geometry() {
    let folder = Folder::new();
    folder.write("a/1.jpg", colour(20, 30, [200, 100, 50], ImageFormat::Jpeg));
    folder.write("a/2.JPEG", colour(8, 8, [200, 100, 50], ImageFormat::Jpeg));
    folder.write("a/named-wrongly.jpg", colour(5, 5, [200, 100, 50], ImageFormat::Png));
    let deep = image::ImageBuffer::<image::Luma<u16>, _>::from_pixel(7, 5, image::Luma([0x8080]));
    folder.write("b/deep.png", encode(deep.into(), ImageFormat::Png));
    let clear = image::RgbaImage::from_pixel(3, 3, image::Rgba([1, 2, 3, 0]));
    folder.write("b/clear.png", encode(clear.into(), ImageFormat::Png));
    folder.write("b/grey.png", grey_png(40, 2, 77));

    let message = folder.message("folder");
    assert_contains(&message, "pass --size HxW");
    assert_contains(&message, "is 8x8 but");

    let options = LoadOptions { size: Some((6, 9)), test_fraction: 0.34, ..Default::default() };
    let data = folder.load_with("folder", &options).unwrap();
    assert_eq!(data.train.geometry, Geometry { height: 6, width: 9, channels: 3 });
    let mut means: Vec<[u8; 3]> = [&data.train, &data.test]
        .iter()
        .flat_map(|part| (0..part.len()).map(|i| [0, 1, 2].map(|c| part.image(i)[c])))
        .collect();
    means.sort_unstable();
    assert_eq!(means[..2], [[77; 3], [128; 3]]);
    assert_eq!(means[5], [255; 3]);
    for jpeg in &means[2..5] {
        assert!(jpeg.iter().zip([200, 100, 50]).all(|(&a, b): (&u8, u8)| a.abs_diff(b) <= 2), "{jpeg:?}");
    }

    let grey = folder.load_with("folder", &LoadOptions { channels: Some(1), ..options }).unwrap();
    assert_eq!(grey.train.geometry.channels, 1);
}

#[test]
fn palettes_are_expanded() {
    // A 2x1 one-bit palette image: red, blue.
    let mut png = png_header(1, 2);
    png.truncate(8);
    let mut chunk = |kind: &[u8], data: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(data);
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(kind);
        png.extend(data);
        png.extend(crc.sum().to_be_bytes());
    };
    chunk(b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 1, 1, 3, 0, 0, 0]);
    chunk(b"PLTE", &[255, 0, 0, 0, 0, 255]);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut zlib, &[0, 0b0100_0000]).unwrap();
    chunk(b"IDAT", &zlib.finish().unwrap());
    chunk(b"IEND", &[]);
    let folder = Folder::new();
    for name in ["a/1.png", "a/2.png", "b/1.png", "b/2.png"] {
        folder.write(name, &png);
    }
    let data = folder.load("folder").unwrap();
    assert_eq!(data.train.image(0), [255, 0, 0, 0, 0, 255]);
}

#[test]
fn meta_album_and_renamed_columns() {
    let folder = Folder::new();
    meta_album(&folder);
    let data = folder.load("meta-album").unwrap();
    assert_eq!(data.classes, ["ash", "oak, old"]);
    assert_eq!((data.train.class_counts(2), data.test.class_counts(2)), (vec![2, 2], vec![1, 1]));

    let renamed = Folder::new();
    let info = r#"{"image_column_name": "file", "category_column_name": "kind", "csv_with_tab": true,
                   "images_in_sub_folder": false, "dataset_name": "x"}"#;
    renamed.write("info.json", info);
    renamed.write("labels.csv", "\u{feff}kind\tfile\r\na\tp/1.png\r\nb\tp/2.png\r\na\t3.png\r\nb\t4.png\r\n");
    for name in ["p/1.png", "p/2.png", "3.png", "4.png"] {
        renamed.write(name, grey_png(2, 2, 5));
    }
    assert_eq!(renamed.load("meta-album").unwrap().classes, ["a", "b"]);
}

#[test]
fn stored_sizes_are_converted_on_request() {
    let folder = Folder::new();
    mnist(&folder);
    let options = LoadOptions { size: Some((5, 3)), channels: Some(3), ..Default::default() };
    let data = folder.load_with("idx", &options).unwrap();
    assert_eq!(data.train.geometry, Geometry { height: 5, width: 3, channels: 3 });
    assert_eq!(data.train.pixels, flat_images(&[0, 1, 2, 3, 4, 5], 45));
}

#[test]
fn the_cache_is_used_checked_and_rebuilt() {
    let folder = Folder::new();
    class_folders(&folder, "train");
    class_folders(&folder, "test");
    let cache = Folder::new();
    let options = LoadOptions { cache: Some(cache.join("deep/er")), ..Default::default() };
    let load = || folder.load_with("folder", &options).unwrap();
    let entries =
        || -> Vec<_> { std::fs::read_dir(cache.join("deep/er")).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let fresh = load();
    let files = entries();
    assert_eq!(files.len(), 1, "one file and no temporary: {files:?}");
    assert_eq!(load().identity, fresh.identity);

    // Decoding is skipped: a file damaged without a trace in size or time goes unnoticed.
    let image = folder.join("train/cat/0.png");
    let (sound, time) = (std::fs::read(&image).unwrap(), image.metadata().unwrap().modified().unwrap());
    folder.write("train/cat/0.png", vec![0; sound.len()]);
    std::fs::File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
    assert_eq!(load().identity, fresh.identity);
    folder.write("train/cat/0.png", &sound);
    std::fs::File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();

    // Every kind of damage to the cache means that it is built again.
    let good = std::fs::read(&files[0]).unwrap();
    let flipped = |at: usize| good.iter().enumerate().map(|(i, &b)| if i == at { b ^ 1 } else { b }).collect();
    for damaged in [Vec::new(), good[..good.len() - 1].to_vec(), flipped(0), flipped(9), flipped(50)] {
        std::fs::write(&files[0], damaged).unwrap();
        assert_eq!(load().identity, fresh.identity);
        assert_eq!(std::fs::read(&files[0]).unwrap(), good);
    }

    // Another size, and a changed file, are other entries.
    folder.load_with("folder", &LoadOptions { size: Some((2, 2)), ..options.clone() }).unwrap();
    assert_eq!(entries().len(), 2);
    folder.write("train/cat/0.png", grey_png(3, 4, 250));
    assert_ne!(load().identity, fresh.identity);
    assert_eq!(entries().len(), 3);
}

#[test]
fn an_impossible_cache_is_a_note_not_an_error() {
    let folder = Folder::new();
    class_folders(&folder, "");
    let other = Folder::new();
    let blocked = other.write("file", "x");
    let data = folder.load_with("folder", &LoadOptions { cache: Some(blocked), ..Default::default() }).unwrap();
    assert!(has_note(&data.notes, "were not cached"), "{:?}", data.notes);
}

#[test]
fn results_do_not_depend_on_threads() {
    let folder = Folder::new();
    class_folders(&folder, "");
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = LoadOptions { size: Some((7, 5)), ..Default::default() };
        pool.install(|| describe(&folder.load_with("folder", &options).unwrap()))
    };
    assert_eq!(with(1), with(4));
}

#[test]
fn builtins_load_and_describe_themselves() {
    let data = supernet::data::load(&"builtin:fashion".parse().unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!((data.name.as_str(), data.classes.len()), ("fashion", 10));
    let description = serde_json::to_value(describe(&data)).unwrap();
    assert_eq!(description["train_images"], 2000);
    assert_eq!(description["height"], 28);
    assert_eq!(description["classes"][0]["train"], 200);
    assert!(description["mean"][0].as_f64().unwrap() > 0.1);
    assert_eq!(description["identity"].as_str().unwrap().len(), 32);
}

#[test]
fn the_contact_sheet_has_a_row_a_class() {
    let folder = Folder::new();
    class_folders(&folder, "");
    let data = folder.load("folder").unwrap();
    let path = folder.join("sheet.png");
    contact_sheet(&data, &path, 3).unwrap();
    let sheet = image::open(&path).unwrap().into_rgb8();
    // 3x4 images 16 times enlarged, two white pixels between.
    assert_eq!(sheet.dimensions(), (2 + 3 * (64 + 2), 2 + 2 * (48 + 2)));
    assert_eq!(sheet.get_pixel(0, 0).0, [255; 3]);
    assert!(sheet.get_pixel(2, 2).0[0] < 5 && sheet.get_pixel(2, 52).0[0] >= 100);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file is left");

    assert_contains(&contact_sheet(&data, &path, 0).unwrap_err().to_string(), "is not possible; use 1 to");
    assert_contains(&contact_sheet(&data, &path, 1 << 40).unwrap_err().to_string(), "is not possible; use 1 to");
    let missing = folder.join("no/such/folder.png");
    assert_contains(&contact_sheet(&data, &missing, 3).unwrap_err().to_string(), "cannot write");
}
