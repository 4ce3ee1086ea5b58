//! Header values of our own making, without formatting machinery and nearly without memory of their own.
//!
//! Values are written one behind the other into a page that the thread keeps, and share it; once all values of a full page
//! are gone the page is used again. So a request costs no allocation for its identifiers, and a value that is kept for
//! long keeps [`PAGE`] bytes.

use std::cell::RefCell;

use bytes::BytesMut;
use http::HeaderValue;

/// Bytes of a page: some twenty values.
const PAGE: usize = 2048;

/// The value of that text; empty where it is not visible ASCII, which ours always is.
pub(crate) fn value(text: &[u8]) -> HeaderValue {
    thread_local! {
        static PAPER: RefCell<BytesMut> = RefCell::default();
    }
    let written = PAPER.try_with(|paper| {
        let mut paper = paper.borrow_mut();
        if paper.capacity() < text.len() {
            paper.reserve(text.len().max(PAGE));
        }
        paper.extend_from_slice(text);
        HeaderValue::from_maybe_shared(paper.split().freeze())
    });
    let value = written.unwrap_or_else(|_| HeaderValue::from_bytes(text));
    value.unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A number in decimal.
pub(crate) fn decimal(number: u64) -> HeaderValue {
    const FEW: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match usize::try_from(number).ok().and_then(|number| FEW.get(number)) {
        Some(digit) => HeaderValue::from_static(digit),
        None => {
            let mut digits = [0; 20];
            value(decimal_digits(number, &mut digits))
        }
    }
}

/// The digits of a number, at the end of `digits`, which any number fits.
pub(crate) fn decimal_digits(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        start = at;
        if number == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

/// The eight hexadecimal digits of a number: all nibbles at once, each spread over a byte.
pub(crate) fn hex8(number: u32) -> [u8; 8] {
    let mut x = u64::from(number);
    x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // 1 in the bytes of 10 and more, whose digits begin at `a` and not behind `9`.
    let letters = ((x + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (x + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

/// Sixteen hexadecimal digits.
pub(crate) fn hex16(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&hex8((number >> 32) as u32));
    digits[8..].copy_from_slice(&hex8(number as u32));
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_formatting_writes() {
        for number in [0, 1, 9, 10, 15_000, 0x09af_0123_4567_89ab, u64::MAX, 0xa9a9_9a9a_0f0f_f0f0] {
            assert_eq!(decimal(number), number.to_string());
            assert_eq!(String::from_utf8_lossy(&hex16(number)), format!("{number:016x}"));
        }
    }

    #[test]
    fn values_outlive_their_page() {
        let values: Vec<_> = (0..1_000).map(|n| value(format!("value {n}").as_bytes())).collect();
        assert!(values.iter().enumerate().all(|(n, value)| *value == format!("value {n}")));
        assert_eq!(value(&[b'x'; 3 * PAGE]).len(), 3 * PAGE);
        assert!(value(b"\n").is_empty());
    }
}
