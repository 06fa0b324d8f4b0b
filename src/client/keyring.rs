//! The keyring of a user's session: the Secret Service of freedesktop.org, which GNOME's keyring, KDE's wallet and
//! KeePassXC speak.
//!
//! Spoken by `zbus` alone, which brings ten crates that are not linked in any case. `keyring` and `secret-service`
//! bring as many again, ciphers of a second kind among them, to encrypt what goes over a socket of the user's own:
//! whoever reads along there may as well ask. The program `secret-tool` is part of few desktops, and where a keyring
//! is locked it opens a window and waits, in the middle of a command in a script; here nobody is ever asked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atelier_agent::ATTEMPT_MARK;
use zbus::{Connection, Dict, OwnedObjectPath, OwnedVariant, Variant, connection, fdo};
use zeroize::Zeroizing;

/// Turns it off.
pub const VARIABLE: &str = "ATELIER_KEYRING";

/// Until a keyring must have answered: commands wait for it.
const WITHIN: Duration = Duration::from_secs(3);

const SERVICE: &str = "org.freedesktop.secrets";
const ROOT: &str = "/org/freedesktop/secrets";
const NOTHING: &str = "/";

/// A keyring, if there is one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keyring {
    /// That of the session whose bus is here.
    On {
        /// The bus's address.
        bus: String,
    },
    /// The session has none.
    Absent,
    /// It is not to be used.
    Off,
}

/// Why a keyring does not keep or show something.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unusable {
    /// There is none.
    #[error("this session has no keyring")]
    Absent,
    /// It is not to be used.
    #[error("the keyring is turned off ({VARIABLE})")]
    Off,
    /// Somebody has to open it first.
    #[error("the keyring is locked")]
    Locked,
    /// It has nothing that things could be kept in.
    #[error("the keyring has no default collection; the desktop's program for passwords makes one")]
    NoCollection,
    /// It is there, and silent.
    #[error("the keyring does not answer within {} s", WITHIN.as_secs())]
    Late,
    /// It said something else.
    #[error("the keyring failed: {0}")]
    Failed(String),
}

impl Unusable {
    /// Whether somebody would want to know: that there is none is as usual as that there is one.
    pub const fn is_worth_telling(&self) -> bool {
        !matches!(self, Self::Absent | Self::Off)
    }
}

/// A secret that was to be in the keyring and is elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotKept {
    /// Why.
    pub why: Unusable,
    /// Why the keyring has the one before it still.
    pub left: Option<Unusable>,
}

impl NotKept {
    /// What somebody would want to know of it, a line each: `what` is kept in a file instead.
    pub fn told(&self, what: &str) -> Vec<String> {
        let why = self.why.is_worth_telling().then(|| {
            format!("{}: the {what} is kept in a file, which only you can read", self.why)
        });
        let left = self.left.as_ref().map(|left| {
            format!("the keyring still has the former {what} ({left}): remove it there")
        });
        why.into_iter().chain(left).collect()
    }
}

impl From<zbus::Error> for Unusable {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::FDO(said) => match *said {
                fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_) => Self::Absent,
                said => Self::Failed(said.to_string()),
            },
            zbus::Error::MethodError(name, _, _)
                if name.as_str() == "org.freedesktop.Secret.Error.IsLocked" =>
            {
                Self::Locked
            }
            error => Self::Failed(error.to_string()),
        }
    }
}

/// A value of the variable that means nothing.
#[derive(Debug, thiserror::Error)]
#[error("{VARIABLE} is '{}'", said.chars().take(40).collect::<String>())]
pub struct NotUnderstood {
    said: String,
}

impl Keyring {
    /// The one of this session, as the environment says. Jobs have none: what their user keeps is not theirs.
    ///
    /// # Errors
    /// If [`VARIABLE`] is neither `auto` nor `off`.
    pub fn of_session(variable: impl Fn(&str) -> Option<String>) -> Result<Self, NotUnderstood> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        match variable(VARIABLE).as_deref() {
            None | Some("auto") => {}
            Some("off") => return Ok(Self::Off),
            Some(said) => return Err(NotUnderstood { said: said.to_owned() }),
        }
        if variable(ATTEMPT_MARK).is_some() {
            return Ok(Self::Off);
        }
        let of_systemd = || {
            let socket = Path::new(&variable("XDG_RUNTIME_DIR")?).join("bus");
            socket.exists().then(|| format!("unix:path={}", socket.to_str()?).into()).flatten()
        };
        // Secrets go to a socket of this machine, and over no network.
        let local = |all: String| {
            all.split(';').find(|address| address.starts_with("unix:")).map(str::to_owned)
        };
        let bus = variable("DBUS_SESSION_BUS_ADDRESS").map_or_else(of_systemd, local);
        Ok(bus.map_or(Self::Absent, |bus| Self::On { bus }))
    }

    /// The place of one secret: `kind` and `name` say of what, `settings` which folder of settings names it.
    pub fn slot(&self, kind: &'static str, name: &str, settings: &Path) -> Slot {
        let keyring = self.clone();
        Slot { keyring, kind, name: name.to_owned(), settings: settings.to_owned() }
    }

    /// Does something with the service, in so much time.
    fn ask<T: Send>(
        &self,
        work: impl AsyncFnOnce(&Service) -> Result<T, Unusable> + Send,
    ) -> Result<T, Unusable> {
        let bus = match self {
            Self::On { bus } => bus,
            Self::Absent => return Err(Unusable::Absent),
            Self::Off => return Err(Unusable::Off),
        };
        let failed = |error: std::io::Error| Unusable::Failed(error.to_string());
        let asking = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().map_err(failed)?;
            let done = runtime.block_on(async {
                let asked = async { work(&Service::open(bus).await?).await };
                tokio::time::timeout(WITHIN, asked).await.unwrap_or(Err(Unusable::Late))
            });
            runtime.shutdown_background();
            done
        };
        // A thread of its own: whoever asks may be on one that a runtime has already.
        let done = std::thread::scope(|scope| scope.spawn(asking).join());
        done.unwrap_or_else(|_| Err(Unusable::Failed("its client ended".to_owned())))
    }
}

/// Where one secret is in a keyring, or would be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    keyring: Keyring,
    kind: &'static str,
    name: String,
    settings: PathBuf,
}

impl Slot {
    /// By which the service finds it. Anybody may see these.
    fn attributes(&self) -> HashMap<&'static str, String> {
        HashMap::from([
            ("xdg:schema", "atelier.Token".to_owned()),
            ("application", "atelier".to_owned()),
            ("kind", self.kind.to_owned()),
            ("name", self.name.clone()),
            ("settings", self.settings.to_string_lossy().into_owned()),
        ])
    }

    /// Keeps a secret, in place of the one before.
    ///
    /// # Errors
    /// [`Unusable`]; it is not kept then.
    pub fn keep(&self, secret: &str) -> Result<(), Unusable> {
        self.keyring.ask(async |service| {
            let collection = service.own().await?;
            let label = format!("Atelier: {} {}", self.kind, self.name);
            service.create(&collection, &label, self.attributes(), secret.as_bytes()).await
        })
    }

    /// The secret, if there is one.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn read(&self) -> Result<Option<Zeroizing<String>>, Unusable> {
        self.keyring.ask(async |service| {
            let (open, locked) = service.search(&self.attributes()).await?;
            match (open.first(), locked.first()) {
                (Some(item), _) => service.read(item).await.map(Some),
                (None, Some(_)) => Err(Unusable::Locked),
                (None, None) => Ok(None),
            }
        })
    }

    /// Has it forgotten, if it is there.
    ///
    /// # Errors
    /// [`Unusable`]; it is kept further then.
    pub fn forget(&self) -> Result<(), Unusable> {
        self.keyring.ask(async |service| {
            let (open, locked) = service.search(&self.attributes()).await?;
            for item in &open {
                service.delete(item).await?;
            }
            if locked.is_empty() { Ok(()) } else { Err(Unusable::Locked) }
        })
    }
}

/// The interface of the Secret Service, version 0.2.
struct Service {
    bus: Connection,
    session: OwnedObjectPath,
}

/// A secret on its way: the session, what its cipher needs, itself, what it is.
type Carried = (OwnedObjectPath, Vec<u8>, Vec<u8>, String);

impl Service {
    async fn open(bus: &str) -> Result<Self, Unusable> {
        let bus = connection::Builder::address(bus).build().await?;
        let how = ("plain", Variant::from(""));
        let opened = bus
            .call_method(
                Some(SERVICE),
                ROOT,
                Some("org.freedesktop.Secret.Service"),
                "OpenSession",
                &how,
            )
            .await?;
        let (_, session): (OwnedVariant, OwnedObjectPath) = opened.body().deserialize()?;
        Ok(Self { bus, session })
    }

    /// Where things are kept if nobody says where.
    async fn own(&self) -> Result<OwnedObjectPath, Unusable> {
        let interface = Some("org.freedesktop.Secret.Service");
        let named = self.bus.call_method(Some(SERVICE), ROOT, interface, "ReadAlias", &"default");
        let collection: OwnedObjectPath = named.await?.body().deserialize()?;
        if collection.as_str() == NOTHING {
            return Err(Unusable::NoCollection);
        }
        let interface = Some("org.freedesktop.DBus.Properties");
        let what = ("org.freedesktop.Secret.Collection", "Locked");
        let told = self.bus.call_method(Some(SERVICE), &collection, interface, "Get", &what);
        let locked: OwnedVariant = told.await?.body().deserialize()?;
        match bool::try_from(locked) {
            Ok(false) => Ok(collection),
            _ => Err(Unusable::Locked),
        }
    }

    async fn create(
        &self,
        collection: &OwnedObjectPath,
        label: &str,
        attributes: HashMap<&'static str, String>,
        secret: &[u8],
    ) -> Result<(), Unusable> {
        let properties = HashMap::from([
            ("org.freedesktop.Secret.Item.Label", Variant::from(label)),
            ("org.freedesktop.Secret.Item.Attributes", Variant::from(Dict::from(attributes))),
        ]);
        let secret = (&self.session, &[0_u8; 0][..], secret, "text/plain");
        let body = (properties, secret, true);
        let interface = Some("org.freedesktop.Secret.Collection");
        let made = self.bus.call_method(Some(SERVICE), collection, interface, "CreateItem", &body);
        let (_, prompt): (OwnedObjectPath, OwnedObjectPath) = made.await?.body().deserialize()?;
        unasked(&prompt)
    }

    async fn search(
        &self,
        attributes: &HashMap<&'static str, String>,
    ) -> Result<(Vec<OwnedObjectPath>, Vec<OwnedObjectPath>), Unusable> {
        let interface = Some("org.freedesktop.Secret.Service");
        let found =
            self.bus.call_method(Some(SERVICE), ROOT, interface, "SearchItems", attributes).await?;
        Ok(found.body().deserialize()?)
    }

    async fn read(&self, item: &OwnedObjectPath) -> Result<Zeroizing<String>, Unusable> {
        let interface = Some("org.freedesktop.Secret.Item");
        let told = self.bus.call_method(Some(SERVICE), item, interface, "GetSecret", &self.session);
        let (_, _, secret, _): Carried = told.await?.body().deserialize()?;
        let text = String::from_utf8(secret);
        text.map(Zeroizing::new).map_err(|_| Unusable::Failed("it holds no text".to_owned()))
    }

    async fn delete(&self, item: &OwnedObjectPath) -> Result<(), Unusable> {
        let interface = Some("org.freedesktop.Secret.Item");
        let gone = self.bus.call_method(Some(SERVICE), item, interface, "Delete", &()).await?;
        unasked(&gone.body().deserialize()?)
    }
}

/// Done, unless somebody would have to be asked first.
fn unasked(prompt: &OwnedObjectPath) -> Result<(), Unusable> {
    if prompt.as_str() == NOTHING { Ok(()) } else { Err(Unusable::Locked) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Result<Keyring, String> {
        let value = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Keyring::of_session(value).map_err(|error| error.to_string())
    }

    #[test]
    fn the_keyring_is_that_of_the_session_on_this_machine() {
        let on = |bus: &str| Ok(Keyring::On { bus: bus.to_owned() });
        let bus = ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/x,guid=1");
        assert_eq!(found(&[]), Ok(Keyring::Absent));
        assert_eq!(found(&[bus]), on(bus.1));
        assert_eq!(found(&[bus, (VARIABLE, "auto")]), on(bus.1));
        assert_eq!(found(&[bus, (VARIABLE, "")]), on(bus.1));
        assert_eq!(found(&[bus, (VARIABLE, "off")]), Ok(Keyring::Off));
        assert!(found(&[bus, (VARIABLE, "no")]).unwrap_err().contains("'no'"));
        // A job's command, also one that has found the bus.
        assert_eq!(found(&[bus, (ATTEMPT_MARK, "/a")]), Ok(Keyring::Off));
        let several = ("DBUS_SESSION_BUS_ADDRESS", "tcp:host=h,port=1;unix:abstract=a");
        assert_eq!(found(&[several]), on("unix:abstract=a"));
        let far = ("DBUS_SESSION_BUS_ADDRESS", "tcp:host=10.0.0.1,port=1");
        assert_eq!(found(&[far]), Ok(Keyring::Absent));

        let folder = tempfile::tempdir().unwrap();
        let runtime = ("XDG_RUNTIME_DIR", folder.path().to_str().unwrap());
        assert_eq!(found(&[runtime]), Ok(Keyring::Absent));
        let socket = folder.path().join("bus");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(found(&[runtime]), on(&format!("unix:path={}", socket.display())));
    }

    #[test]
    fn a_bus_that_is_silent_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("bus");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let keyring = Keyring::On { bus: format!("unix:path={}", socket.display()) };
        let slot = keyring.slot("session", "https://a:1", folder.path());
        assert_eq!(slot.keep("secret"), Err(Unusable::Late));
        let gone = Keyring::On { bus: format!("unix:path={}", folder.path().join("x").display()) };
        let slot = gone.slot("session", "https://a:1", folder.path());
        assert!(matches!(slot.read(), Err(Unusable::Failed(_))));
        assert_eq!(Keyring::Absent.slot("a", "b", folder.path()).read(), Err(Unusable::Absent));
        assert!(!format!("{:?}", slot).contains("secret"));
    }
}
