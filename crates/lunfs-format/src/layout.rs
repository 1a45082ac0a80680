//! Where each field lies, written once: the raw structures are made from the same lines as the
//! tables that `tests/document.rs` compares with docs/format.md.

/// A field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in docs/format.md.
    pub name: &'static str,
    /// Where it lies in the structure.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
    /// Whether it must be zero.
    pub reserved: bool,
}

/// A structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its name in docs/format.md.
    pub structure: &'static str,
    /// Its bytes.
    pub size: usize,
    /// Its fields in order; the header is one field named `header`.
    pub fields: &'static [Field],
}

/// All structures, in the order of docs/format.md.
pub const ALL: [Layout; 13] = [
    crate::header::LAYOUT,
    crate::superblock::LAYOUT,
    crate::pulse::LAYOUT,
    crate::doorbell::LAYOUT,
    crate::lock::LAYOUT,
    crate::cluster::LAYOUT,
    crate::descriptor::LAYOUT,
    crate::layer::SNAPSHOT_LAYOUT,
    crate::node::LAYOUT,
    crate::journal::HEADER_LAYOUT,
    crate::journal::RECORD_LAYOUT,
    crate::journal::ENTRY_LAYOUT,
    crate::descriptor::ENTRY_VALUE_LAYOUT,
];

/// The bits of a map entry: name, first bit, the bit behind the last.
pub const MAP_ENTRY: [(&str, u32, u32); 5] = crate::map_entry::BITS;

/// Declares the structure as it lies on disk, and its `Layout`.
///
/// A field followed by `= zero` is reserved. All field types have alignment one.
macro_rules! raw {
    (
        $(#[$attribute:meta])*
        $name:ident, $layout:ident, $title:literal {
            $($field:ident: $type:ty $(= $zero:ident)?,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::KnownLayout,
            zerocopy::Immutable,
            zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
        }

        pub(crate) const $layout: $crate::layout::Layout = $crate::layout::Layout {
            structure: $title,
            size: size_of::<$name>(),
            fields: &[$($crate::layout::Field {
                name: stringify!($field),
                offset: std::mem::offset_of!($name, $field),
                size: size_of::<$type>(),
                reserved: {
                    const MARKS: &[&str] = &[$(stringify!($zero))?];
                    !MARKS.is_empty()
                },
            }),*],
        };
    };
}

/// Declares an enum that is stored as a number.
macro_rules! numbered {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident, $field:literal {
            $($(#[$variant_attribute:meta])* $variant:ident = $number:literal,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_attribute])* $variant = $number,)*
        }

        impl $name {
            /// The number that is stored.
            pub(crate) fn number(self) -> u8 {
                self as u8
            }

            /// What the stored number means.
            pub(crate) fn from_number(
                number: impl Into<u64>,
            ) -> Result<$name, $crate::error::DecodeError> {
                match number.into() {
                    $($number => Ok($name::$variant),)*
                    other => Err($crate::error::DecodeError::field($field, other)),
                }
            }
        }
    };
}

pub(crate) use {numbered, raw};
