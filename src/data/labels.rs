//! Classes of formats that store labels as numbers.

/// Class names `0` to `K - 1` of integer labels, `K` from the training part. Labels that run from 1 are shifted to
/// run from 0, which keeps their own numbers as names.
pub(super) fn numeric(train: &mut [u32], mut test: Option<&mut Vec<u32>>, notes: &mut Vec<String>) -> Vec<String> {
    let all = || train.iter().chain(test.iter().flat_map(|labels| labels.iter()));
    let first = u32::from(all().min() == Some(&1));
    if first == 1 {
        train.iter_mut().for_each(|label| *label -= 1);
        test.iter_mut().flat_map(|labels| labels.iter_mut()).for_each(|label| *label -= 1);
        notes.push("the labels run from 1: shifted to run from 0, the class names keep their numbers".into());
    }
    let classes = train.iter().max().map_or(0, |&largest| largest + 1);
    (first..first + classes).map(|name| name.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_from_zero_stay() {
        let (mut train, mut test, mut notes) = (vec![0, 2, 1], vec![1, 2], Vec::new());
        assert_eq!(numeric(&mut train, Some(&mut test), &mut notes), ["0", "1", "2"]);
        assert_eq!((train, test, notes.len()), (vec![0, 2, 1], vec![1, 2], 0));
    }

    #[test]
    fn labels_from_one_are_shifted_in_both_parts() {
        let (mut train, mut test, mut notes) = (vec![1, 2, 3], vec![3, 2], Vec::new());
        assert_eq!(numeric(&mut train, Some(&mut test), &mut notes), ["1", "2", "3"]);
        assert_eq!((train, test, notes.len()), (vec![0, 1, 2], vec![2, 1], 1));
        assert!(numeric(&mut [], None, &mut Vec::new()).is_empty());
    }
}
