//! For whom backups are encrypted, and with what they are opened.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::str::FromStr as _;

use age::secrecy::{ExposeSecret as _, SecretString};
use age::stream::{StreamReader, StreamWriter};
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor, IdentityFile};
use zeroize::Zeroizing;

use super::{Error, fail, private_file};

/// A passphrase or a file of identities has at most so many bytes.
const MOST_TEXT: u64 = 64 << 10;
/// A passphrase has at least so many.
const LEAST: usize = 12;

/// For whom a backup is encrypted.
pub enum Sealing {
    /// Holders of any of these keys.
    Recipients(Vec<Recipient>),
    /// Who knows it.
    Passphrase(SecretString),
}

/// With what a backup is opened.
pub enum Opening {
    /// Any of these.
    Identities(Vec<Box<dyn age::Identity>>),
    /// This.
    Passphrase(SecretString),
}

impl Sealing {
    /// For these recipients, and those of the files.
    ///
    /// # Errors
    /// One is none, or there is none at all.
    pub fn recipients(texts: &[String], files: &[std::path::PathBuf]) -> Result<Self, Error> {
        let mut all = Vec::new();
        for text in texts {
            all.push(recipient(text)?);
        }
        for file in files {
            let text = fs::read_to_string(file).map_err(fail("read", file))?;
            let lines = text.lines().map(str::trim);
            for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
                all.push(recipient(line)?);
            }
        }
        if all.is_empty() {
            return Err(Error::Seal(
                "for whom is the backup? Give --recipient age1…, --recipients-file FILE or --passphrase-file FILE; \
                 'atelier backup keygen FILE' makes a key"
                    .to_owned(),
            ));
        }
        Ok(Self::Recipients(all))
    }

    /// For who knows the passphrase of a file; `-` is standard input.
    ///
    /// # Errors
    /// It cannot be read, others may, or it is too short.
    pub fn passphrase(file: &Path) -> Result<Self, Error> {
        let text = passphrase(file)?;
        if text.expose_secret().len() < LEAST {
            return Err(Error::Seal(format!(
                "the passphrase of {} is too short: it protects every key of the workspace; take {LEAST} characters or more",
                file.display()
            )));
        }
        Ok(Self::Passphrase(text))
    }

    /// What encrypts, and what opens that once more in this process: of recipients the private keys are elsewhere, so
    /// there is one more, which is made for this and forgotten after it.
    pub(super) fn begin(self) -> Result<(Encryptor, Opening), Error> {
        match self {
            Self::Recipients(recipients) => {
                let once = Identity::generate();
                let public = once.to_public();
                let all = recipients.iter().chain([&public]).map(|one| one as &dyn age::Recipient);
                let encryptor = Encryptor::with_recipients(all)
                    .map_err(|error| Error::Seal(format!("cannot encrypt: {error}")))?;
                Ok((encryptor, Opening::Identities(vec![Box::new(once)])))
            }
            Self::Passphrase(text) => {
                let encryptor = Encryptor::with_user_passphrase(text.clone());
                Ok((encryptor, Opening::Passphrase(text)))
            }
        }
    }
}

fn recipient(text: &str) -> Result<Recipient, Error> {
    if text.starts_with("AGE-SECRET-KEY-") {
        return Err(Error::Seal(
            "that is a private key; give the public one, which begins with age1, and keep this one secret".to_owned(),
        ));
    }
    Recipient::from_str(text).map_err(|problem| {
        let shown: String = text.chars().take(20).collect();
        Error::Seal(format!(
            "'{shown}' is no recipient ({problem}); write age1…, as keygen prints it"
        ))
    })
}

fn passphrase(file: &Path) -> Result<SecretString, Error> {
    let text = secret_text(file)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(Error::Seal(format!("{} has no passphrase in its first line", file.display())));
    }
    Ok(SecretString::from(line.to_owned()))
}

/// What a file holds that only its owner may read.
fn secret_text(file: &Path) -> Result<Zeroizing<String>, Error> {
    let mut text = Zeroizing::new(String::new());
    if file == Path::new("-") {
        let read = io::stdin().take(MOST_TEXT).read_to_string(&mut text);
        return read.map_err(fail("read", Path::new("standard input"))).map(|_| text);
    }
    let opened = File::open(file).map_err(fail("read", file))?;
    let found = opened.metadata().map_err(fail("read", file))?;
    if found.is_file() && found.mode() & 0o077 != 0 {
        return Err(Error::Seal(format!(
            "others than its owner may read {} (mode {:o}), and it opens backups; run 'chmod 600' on it",
            file.display(),
            found.mode() & 0o7777
        )));
    }
    opened.take(MOST_TEXT).read_to_string(&mut text).map_err(fail("read", file))?;
    Ok(text)
}

impl Opening {
    /// By the private keys of a file.
    ///
    /// # Errors
    /// It cannot be read, others may, or there is none in it.
    pub fn identities(file: &Path) -> Result<Self, Error> {
        let text = secret_text(file)?;
        let unusable = |problem: String| {
            Error::Seal(format!(
                "{} has no private keys that can be used ({problem}); it has lines with AGE-SECRET-KEY-1…, as \
                 'atelier backup keygen' or 'age-keygen' writes them",
                file.display()
            ))
        };
        let all = IdentityFile::from_buffer(text.as_bytes())
            .map_err(|error| unusable(error.to_string()))?
            .into_identities()
            .map_err(|error| unusable(error.to_string()))?;
        if all.is_empty() {
            return Err(unusable("it is empty".to_owned()));
        }
        Ok(Self::Identities(all))
    }

    /// By the passphrase of a file; `-` is standard input.
    ///
    /// # Errors
    /// It cannot be read, or others may.
    pub fn passphrase(file: &Path) -> Result<Self, Error> {
        passphrase(file).map(Self::Passphrase)
    }

    /// The plain text of a backup.
    pub(super) fn open(&self, path: &Path) -> Result<StreamReader<BufReader<File>>, Error> {
        let file = File::open(path).map_err(fail("open", path))?;
        let fail = |error: DecryptError| {
            Error::Open {
            path: path.display().to_string(),
            problem: match error {
                DecryptError::NoMatchingKeys => {
                    "it is encrypted for others; give the identity of one of its recipients, or the passphrase, \
                     whichever it was made with"
                        .to_owned()
                }
                DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
                    "the passphrase or identity is not the one that it was made with".to_owned()
                }
                DecryptError::InvalidHeader | DecryptError::UnknownFormat => {
                    "it is no backup, or its beginning is damaged".to_owned()
                }
                other => other.to_string(),
            },
        }
        };
        let decryptor = Decryptor::new_buffered(BufReader::new(file)).map_err(fail)?;
        let opened = match self {
            Self::Identities(all) => decryptor.decrypt(all.iter().map(|one| &**one)),
            Self::Passphrase(text) => {
                let identity = age::scrypt::Identity::new(text.clone());
                decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
            }
        };
        opened.map_err(fail)
    }
}

/// Encrypts what is written to it.
pub(super) fn encrypt<W: Write>(encryptor: Encryptor, to: W) -> io::Result<StreamWriter<W>> {
    encryptor.wrap_output(to)
}

/// Makes a private key in a new file that only its owner may read; gives the public one.
///
/// # Errors
/// It is there already, or cannot be written.
pub fn keygen(path: &Path) -> Result<String, Error> {
    if path.exists() {
        return Err(Error::Exists(path.display().to_string()));
    }
    let identity = Identity::generate();
    let public = identity.to_public().to_string();
    let secret = identity.to_string();
    let text = Zeroizing::new(format!("# public key: {public}\n{}\n", secret.expose_secret()));
    let mut file = private_file(path, 0o600)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail("write", path))?;
    Ok(public)
}
