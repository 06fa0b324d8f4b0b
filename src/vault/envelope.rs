//! What lies on the disk of a secret: its value under a data key of its own, and that key under a key that does
//! not lie there.
//!
//! Both are sealed with AES-256-GCM-SIV (RFC 8452), which forgives a nonce that comes twice: a key encryption
//! key seals many data keys under random nonces. Each is bound to where it belongs, so that nobody who can write to
//! the database gives one secret the value of another, or an earlier value of its own.

#[cfg(test)]
mod tests;

use atelier_core::id::SecretVersion;
use atelier_core::secret::SealedName;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::Error;
use super::key::{KEY_LEN, Key, KeyId};

/// The form of what is sealed; its first byte.
const FORMAT: u8 = 1;

/// Where a sealed value belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The workspace's id.
    pub(super) workspace: &'a str,
    pub(super) name: &'a SealedName,
    pub(super) version: SecretVersion,
}

/// A value as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// The value, under its data key.
    pub value: Vec<u8>,
    /// The data key, under the key encryption key.
    pub data_key: Vec<u8>,
    /// Which that is.
    pub key: KeyId,
}

impl Sealed {
    /// How long the value is.
    pub(super) fn length(&self) -> usize {
        self.value.len().saturating_sub(1 + NONCE_LEN + AES_256_GCM_SIV.tag_len())
    }
}

/// What a value is sealed with, and how it is kept: sealed itself.
pub(super) struct DataKey {
    pub(super) plain: Plain,
    pub(super) kept: Vec<u8>,
    /// With which key encryption key.
    pub(super) key: KeyId,
}

/// A data key as it seals. It is wiped when it is dropped.
pub(super) type Plain = Zeroizing<[u8; KEY_LEN]>;

/// A new data key, not kept yet.
pub(super) fn new_data_key() -> Result<Plain, Error> {
    let mut plain = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(&mut *plain).map_err(|_| Error::Random)?;
    Ok(plain)
}

/// Seals a value under a data key that was made for the place.
pub(super) fn seal(place: Place<'_>, value: &[u8], data_key: &DataKey) -> Result<Sealed, Error> {
    let DataKey { plain, kept, key } = data_key;
    let value = seal_one(plain, &place.of_value(), value)?;
    Ok(Sealed { value, data_key: kept.clone(), key: key.clone() })
}

/// The value, by its data key.
pub(super) fn open(
    place: Place<'_>,
    sealed: &Sealed,
    data_key: &Plain,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    open_one(data_key, &place.of_value(), &sealed.value).ok_or_else(|| place.damaged())
}

/// Seals a data key, for its place, under a key that the daemon has.
pub(super) fn wrap(place: Place<'_>, plain: Plain, key: &Key) -> Result<DataKey, Error> {
    let kept = seal_one(key.bytes(), &place.of_key(key.id()), &*plain)?;
    Ok(DataKey { plain, kept, key: key.id().clone() })
}

/// The data key of what is sealed.
pub(super) fn unwrap(place: Place<'_>, sealed: &Sealed, key: &Key) -> Result<Plain, Error> {
    let opened = open_one(key.bytes(), &place.of_key(&sealed.key), &sealed.data_key);
    opened.and_then(|bytes| plain(&bytes)).ok_or_else(|| place.damaged())
}

/// Bytes as a data key, if they are as many.
pub(super) fn plain(bytes: &[u8]) -> Option<Plain> {
    let mut plain = Zeroizing::new([0; KEY_LEN]);
    if bytes.len() != KEY_LEN {
        return None;
    }
    plain.copy_from_slice(bytes);
    Some(plain)
}

impl Place<'_> {
    /// What the value is bound to.
    fn of_value(&self) -> Vec<u8> {
        self.bound("value", &[])
    }

    /// What the data key is bound to where transit seals it: its key may be restored under another name.
    pub(super) fn of_transit(&self) -> Vec<u8> {
        self.bound("data key of transit", &[])
    }

    /// What the data key is bound to.
    fn of_key(&self, key: &KeyId) -> Vec<u8> {
        self.bound("data key", key.as_str().as_bytes())
    }

    /// Each part after its length: no two places are written alike.
    fn bound(&self, what: &str, more: &[u8]) -> Vec<u8> {
        // Names that differ in case only are one.
        let name = self.name.key().to_ascii_lowercase();
        let version = self.version.0.to_be_bytes();
        let parts: [&[u8]; 6] = [
            &[FORMAT],
            what.as_bytes(),
            self.workspace.as_bytes(),
            name.as_bytes(),
            &version,
            more,
        ];
        let mut bound = b"atelier vault".to_vec();
        for part in parts {
            bound.extend((part.len() as u64).to_be_bytes());
            bound.extend(part);
        }
        bound
    }

    pub(super) fn damaged(&self) -> Error {
        Error::Damaged { name: self.name.clone(), version: self.version }
    }
}

fn cipher(key: &[u8; KEY_LEN]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM_SIV, key).ok().map(LessSafeKey::new)
}

/// Format, nonce, ciphertext, tag.
fn seal_one(key: &[u8; KEY_LEN], bound: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|_| Error::Random)?;
    // Sealed where it lies, in room that need not grow: no copy of it stays behind.
    let mut body = Zeroizing::new(Vec::with_capacity(plain.len()));
    body.extend_from_slice(plain);
    let tag = cipher(key)
        .and_then(|cipher| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            cipher.seal_in_place_separate_tag(nonce, Aad::from(bound), &mut body).ok()
        })
        .ok_or(Error::Cipher)?;
    Ok([&[FORMAT], &nonce[..], &body, tag.as_ref()].concat())
}

/// `None` if it was sealed with another key, for another place, or changed since.
fn open_one(key: &[u8; KEY_LEN], bound: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (&format, rest) = sealed.split_first()?;
    let (nonce, body) = rest.split_at_checked(NONCE_LEN)?;
    if format != FORMAT {
        return None;
    }
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut opened = Zeroizing::new(body.to_vec());
    let length = cipher(key)?.open_in_place(nonce, Aad::from(bound), &mut opened).ok()?.len();
    opened.truncate(length);
    Some(opened)
}
