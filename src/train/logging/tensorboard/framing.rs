//! TFRecord framing: how an event file separates its messages.
//!
//! A record is its length (u64), a checksum of the length (u32), the bytes, and a checksum of the bytes (u32), all little endian.
//! Checksums are CRC-32C, masked so that a checksum of data which contains checksums is sound
//! (`tensorflow/core/lib/io/record_writer.h`, `core/lib/hash/crc32c.h`).

/// Appends one record.
pub fn frame(message: &[u8], out: &mut Vec<u8>) {
    let length = (message.len() as u64).to_le_bytes();
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(message);
    out.extend(masked_crc(message).to_le_bytes());
}

/// CRC-32C, rotated right by 15 bits, plus a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        // appendix B.4
        for (bytes, crc) in [
            (vec![0; 32], 0x8a91_36aa),
            (vec![0xff; 32], 0x62a8_ab43),
            ((0..32).collect(), 0x46dd_794e),
            ((0..32).rev().collect(), 0x113f_db5c),
        ] {
            assert_eq!(crc32c::crc32c(&bytes), crc);
        }
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_record_is_framed_to_the_byte() {
        // what TensorBoard's own RecordWriter writes for this message
        let mut out = Vec::new();
        frame(b"brain.Event:2", &mut out);
        let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0d000000000000003c37b834627261696e2e4576656e743a32ee01067c");
    }
}
