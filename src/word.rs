//! Types that are one word in files as on the command line.

/// Serialises a type as what it displays as, and reads it as it is parsed (`#[serde(try_from = "String", into = "String")]`).
macro_rules! serialised_as_word {
    ($($ty:ty),+ $(,)?) => {$(
        impl TryFrom<String> for $ty {
            type Error = <$ty as std::str::FromStr>::Err;

            fn try_from(word: String) -> Result<Self, Self::Error> {
                word.parse()
            }
        }

        impl From<$ty> for String {
            fn from(value: $ty) -> Self {
                value.to_string()
            }
        }
    )+};
}
pub(crate) use serialised_as_word;
