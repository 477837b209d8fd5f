//! Values of flags. Errors are shown behind the flag's name.

use supernet::config::AlphaTransfer;
use supernet::data::{Geometry, Spec};
use supernet::device::{DeviceSpec, Precision};
use supernet::embedding::Profile;
use supernet::experiment::protocol::Shard;
use supernet::search::step::Order;

use super::embed::Choice;

/// A count of one side or of channels: digits only, at least 1.
fn extent(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&n| digits && (1..=1 << 16).contains(&n))
}

/// `HxW`.
pub fn size(text: &str) -> Result<(usize, usize), String> {
    let sides: Vec<Option<usize>> = text.split('x').map(extent).collect();
    match sides[..] {
        [Some(height), Some(width)] => Ok((height, width)),
        _ => Err("expected height and width in pixels, such as 32x32, each from 1 to 65536".into()),
    }
}

/// `HxWxC`.
pub fn geometry(text: &str) -> Result<Geometry, String> {
    let extents: Vec<Option<usize>> = text.split('x').map(extent).collect();
    match extents[..] {
        [Some(height), Some(width), Some(channels)] if channels <= 4 => Ok(Geometry { height, width, channels }),
        _ => Err("expected height, width and channels (1 to 4), such as 32x32x3".into()),
    }
}

/// A dataset, kept as text.
pub fn spec(text: &str) -> Result<String, String> {
    text.parse::<Spec>().map(|spec| spec.to_string()).map_err(|error| error.to_string())
}

/// A device that this build has.
pub fn device(text: &str) -> Result<DeviceSpec, String> {
    text.parse::<DeviceSpec>().map_err(|error| error.to_string())
}

/// A device of any build.
pub fn any_device(text: &str) -> Result<DeviceSpec, String> {
    DeviceSpec::try_from(text.to_string()).map_err(|error| error.to_string())
}

/// A precision of some device.
pub fn precision(text: &str) -> Result<Precision, String> {
    text.parse::<Precision>().map_err(|error| error.to_string())
}

/// An embedder.
pub fn embedder(text: &str) -> Result<Choice, String> {
    match text {
        "pixels" => Ok(Choice::Pixels),
        "zoo" => Ok(Choice::Zoo),
        "efficientnet-lite0" => Ok(Choice::EfficientNetLite0),
        "resnet18" => Ok(Choice::ResNet18),
        _ => Err("expected pixels, zoo, efficientnet-lite0 or resnet18".into()),
    }
}

/// `normalised` or `paper`.
pub fn profile(text: &str) -> Result<Profile, String> {
    text.parse::<Profile>().map_err(|error| error.to_string())
}

/// `keep`, `temper` or `reset`.
pub fn alphas(text: &str) -> Result<AlphaTransfer, String> {
    match text {
        "keep" => Ok(AlphaTransfer::Keep),
        "temper" => Ok(AlphaTransfer::Temper),
        "reset" => Ok(AlphaTransfer::Reset),
        _ => Err("expected keep, temper or reset".into()),
    }
}

/// `I/N`: part I of N, counted from 1.
pub fn shard(text: &str) -> Result<Shard, String> {
    let parts: Vec<Option<usize>> = text.split('/').map(extent).collect();
    match parts[..] {
        [Some(index), Some(count)] if index <= count => Ok(Shard { index: index - 1, count }),
        _ => Err("expected a part and how many there are, such as 1/4".into()),
    }
}

/// `first` or `second`.
pub fn order(text: &str) -> Result<Order, String> {
    match text {
        "first" => Ok(Order::First),
        "second" => Ok(Order::Second),
        _ => Err("expected first or second".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_count_from_one() {
        assert_eq!(shard("2/3"), Ok(Shard { index: 1, count: 3 }));
        for bad in ["", "1", "0/3", "4/3", "1/0", "1/2/3"] {
            assert!(shard(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("28x30"), Ok((28, 30)));
        for bad in ["", "28", "28x", "x28", "28x28x1", "0x4", "-1x4", "+4x4", "4 x4", "4X4", "1e3x4", "99999999999x4"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(geometry("28x30x1"), Ok(Geometry { height: 28, width: 30, channels: 1 }));
        for bad in ["28x28", "28x28x0", "28x28x5", "28x28x3x1", "28x28xc"] {
            assert!(geometry(bad).is_err(), "{bad}");
        }
    }
}
