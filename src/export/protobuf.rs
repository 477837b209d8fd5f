//! The part of protobuf's wire format that ONNX models need: varints and length-delimited fields
//! (<https://protobuf.dev/programming-guides/encoding>). Repeated fields are the same field written repeatedly.

/// Wire types of the format.
const VARINT: u64 = 0;
const DELIMITED: u64 = 2;

/// A message under construction; fields are written in the order of the calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message without fields.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds an integer or enum field.
    pub(super) fn int(mut self, field: u32, value: i64) -> Self {
        self.tag(field, VARINT);
        // Negative numbers are written as their two's complement in 64 bits.
        self.varint(value as u64);
        self
    }

    /// Adds a field of bytes.
    pub(super) fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.tag(field, DELIMITED);
        self.varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
        self
    }

    /// Adds a string field.
    pub(super) fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// Adds a message within the message.
    pub(super) fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.bytes)
    }

    /// Adds a repeated integer field.
    pub(super) fn ints(self, field: u32, values: &[i64]) -> Self {
        values.iter().fold(self, |message, &value| message.int(field, value))
    }

    /// Adds a repeated string field.
    pub(super) fn texts(self, field: u32, values: &[&str]) -> Self {
        values.iter().fold(self, |message, value| message.text(field, value))
    }

    /// Adds a repeated field of messages.
    pub(super) fn messages(self, field: u32, values: &[Self]) -> Self {
        values.iter().fold(self, |message, value| message.message(field, value))
    }

    /// The encoded message.
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn tag(&mut self, field: u32, wire: u64) {
        self.varint(u64::from(field) << 3 | wire);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::Message;

    #[test]
    fn integers_are_varints_of_seven_bits() {
        // The documentation's own example: field 1 with 150.
        assert_eq!(Message::new().int(1, 150).finish(), [0x08, 0x96, 0x01]);
        assert_eq!(Message::new().int(1, 0).finish(), [0x08, 0x00]);
        assert_eq!(Message::new().int(1, 127).finish(), [0x08, 0x7f]);
        assert_eq!(Message::new().int(1, 128).finish(), [0x08, 0x80, 0x01]);
        let negative = [0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Message::new().int(1, -2).finish(), negative);
        let largest = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(Message::new().int(1, i64::MAX).finish(), largest);
    }

    #[test]
    fn field_numbers_above_fifteen_take_two_bytes() {
        assert_eq!(Message::new().int(15, 1).finish(), [0x78, 0x01]);
        assert_eq!(Message::new().int(16, 1).finish(), [0x80, 0x01, 0x01]);
    }

    #[test]
    fn strings_and_messages_carry_their_length() {
        // The documentation's examples: field 2 with "testing", field 3 with a message {1: 150}.
        let text = [0x12, 0x07, 0x74, 0x65, 0x73, 0x74, 0x69, 0x6e, 0x67];
        assert_eq!(Message::new().text(2, "testing").finish(), text);
        let inner = Message::new().int(1, 150);
        assert_eq!(Message::new().message(3, &inner).finish(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        assert_eq!(Message::new().message(3, &Message::new()).finish(), [0x1a, 0x00]);
        let long = Message::new().bytes(1, &[7; 300]).finish();
        assert_eq!(long[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(long[3..], [7; 300]);
    }

    #[test]
    fn repeated_fields_are_written_one_by_one() {
        assert_eq!(Message::new().ints(1, &[1, 2]).finish(), [0x08, 0x01, 0x08, 0x02]);
        assert_eq!(Message::new().texts(1, &["a", ""]).finish(), [0x0a, 0x01, 0x61, 0x0a, 0x00]);
        let each = [Message::new().int(1, 1), Message::new()];
        assert_eq!(Message::new().messages(2, &each).finish(), [0x12, 0x02, 0x08, 0x01, 0x12, 0x00]);
        assert!(Message::new().ints(1, &[]).finish().is_empty());
    }
}
