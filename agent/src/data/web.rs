//! Inputs from the web.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atelier_core::content::Digest;
use atelier_core::datastore::Address;
use atelier_core::egress::{Egress, Inside};
use percent_encoding::percent_decode_str;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::IF_NONE_MATCH;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};

use super::cache::Kind;
use super::error::blocking;
use super::files::{self, Stop, StopOnDrop};
use super::gateway::{self, Failure, NotOpen, Patience};
use super::transfer::download;
use super::{Error, Inner};
use crate::reach::{self, Closed};

/// What reads URLs that users chose: it goes where jobs may, and so neither to a cloud's metadata nor to the port by
/// which the daemon takes orders, and to public addresses and those that an admin allows, by whatever name or redirect.
#[derive(Debug)]
pub(super) struct Web {
    client: Client,
    open: Open,
}

/// Where it goes.
#[derive(Clone, Debug)]
struct Open {
    closed: Arc<Closed>,
    egress: Option<Arc<Egress>>,
}

impl Open {
    /// Why there is no way to an address by a host's name.
    fn why(&self, host: &str, to: SocketAddr) -> Option<&'static str> {
        let egress = || self.egress.as_ref().filter(|egress| !egress.names(host, to.port()));
        self.closed.why(to).or_else(|| egress()?.refuses(to.ip()).map(Inside::told))
    }

    /// The same where the port is not known: of a server that an admin has named, its own was looked at before.
    fn why_not_found(&self, host: &str, address: IpAddr) -> Option<&'static str> {
        let egress = self.egress.as_ref().filter(|egress| !egress.names_host(host))?;
        egress.refuses(address).map(Inside::told)
    }

    /// Why a redirect is not followed.
    fn why_not_to(&self, url: &Url) -> Option<&'static str> {
        let is_beside = || {
            let (host, port) = (url.host_str()?, url.port_or_known_default()?);
            let egress = self.egress.as_ref()?;
            (egress.names_host(host) && !egress.names(host, port)).then_some(BESIDE)
        };
        self.why_not_at(url).or_else(is_beside)
    }

    /// Why nothing is read from a URL that has an address in place of a name.
    fn why_not_at(&self, url: &Url) -> Option<&'static str> {
        let host = url.host_str()?;
        // Of version 6 they stand in brackets.
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok()?;
        self.why(host, (address, url.port_or_known_default()?).into())
    }
}

/// Where its names lead is not looked at again, and what else is on that machine nobody has named.
const BESIDE: &str = "it leads to another port of the server that the daemon has for public data (serve --public-s3, \
                      --public-azure)";

impl Web {
    pub(super) fn new(
        closed: Arc<Closed>,
        egress: Option<Arc<Egress>>,
    ) -> Result<Self, reqwest::Error> {
        let open = Open { closed, egress };
        let of_redirects = open.clone();
        let follow = Policy::custom(move |attempt| {
            if let Some(why) = of_redirects.why_not_to(attempt.url()) {
                attempt.error(NotOpen(why))
            } else if attempt.previous().len() > MOST_REDIRECTS {
                attempt.error("it redirects again and again")
            } else {
                attempt.follow()
            }
        });
        let names = Names(open.clone());
        let client = gateway::builder().redirect(follow).dns_resolver(Arc::new(names)).build()?;
        Ok(Self { client, open })
    }

    /// Why nothing is read from a URL; `None`: nothing is known against it.
    async fn why_closed(&self, url: &Url) -> Option<&'static str> {
        if let Some(why) = self.open.why_not_at(url) {
            return Some(why);
        }
        let (name, port) = (url.host_str()?, url.port_or_known_default()?);
        // A name that is not found is the request's failure.
        let mut found = tokio::net::lookup_host((name, port)).await.ok()?;
        found.find_map(|address| self.open.why(name, address))
    }

    /// The same of where an answer came from: which port a name's addresses are asked at is not known before.
    fn why_not_taken(&self, answer: &Response) -> Option<&'static str> {
        self.open.closed.why(answer.remote_addr()?)
    }
}

const MOST_REDIRECTS: usize = 10;

/// Looks up names once for each connection, which is made to what was found and looked at: a name that has another
/// address the next time leads nowhere else.
struct Names(Open);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let open = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            for address in &found {
                let is_metadata = reach::is_metadata(address.ip());
                let why = is_metadata.then_some(reach::TO_METADATA);
                if let Some(why) = why.or_else(|| open.why_not_found(name.as_str(), address.ip())) {
                    return Err(NotOpen(why).into());
                }
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// A URL for people: without user, password and query, which may hold keys.
pub(super) fn shown(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut url) => {
            // Fails only for URLs that have no host, which have no password either.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.set_fragment(None);
            url.to_string()
        }
        Err(_) => "the URL".to_owned(),
    }
}

/// The name that a file from this URL gets.
fn name_of(url: &Url) -> String {
    let last = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or("");
    let decoded = percent_decode_str(last).decode_utf8_lossy();
    let name: String = decoded
        .chars()
        .map(|c| if c.is_control() || matches!(c, '/' | '\\') { '_' } else { c })
        .collect();
    let mut end = name.len().min(200);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    match &name[..end] {
        "" | "." | ".." => "data".to_owned(),
        good => good.to_owned(),
    }
}

/// Reads a URL into a file of `folder`; `address`: by which address of cloud storage it was named, if by one. What the
/// server gives a strong tag to is kept in the cache and asked for again only if the tag has changed.
pub(super) async fn fetch(
    inner: &Inner,
    name: &str,
    url: &str,
    address: Option<&str>,
    folder: &Path,
    own_copy: bool,
) -> Result<PathBuf, Error> {
    let failed = |problem: String, transient: bool| Error::Url {
        name: name.to_owned(),
        url: shown(url),
        problem,
        transient,
    };
    let parsed = Url::parse(url).map_err(|error| failed(error.to_string(), false))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(failed(format!("'{}' is not http or https", parsed.scheme()), false));
    }
    if let Some(why) = inner.web.why_closed(&parsed).await {
        return Err(failed(why.to_owned(), false));
    }
    let target = folder.join(name_of(&parsed));
    let flight = inner.flights.of(Digest::of(format!("web\n{url}").as_bytes()));
    let _turn = flight.lock().await;

    let id = |tag: &str| Digest::of(format!("web\n{url}\n{tag}").as_bytes());
    // The tag of last time lies in the cache under the URL itself.
    let tag_id = id("");
    let cache = Arc::clone(&inner.cache);
    let known = blocking(move || {
        let Some((path, _pin)) = cache.get(Kind::Files, tag_id) else { return Ok(None) };
        Ok(fs::read_to_string(path).ok())
    })
    .await?;
    let kept = match known {
        Some(tag) => {
            let (cache, id) = (Arc::clone(&inner.cache), id(&tag));
            blocking(move || Ok(cache.get(Kind::Files, id))).await?.map(|hit| (tag, hit))
        }
        None => None,
    };

    let draft = inner.cache.draft();
    let closed = |answer: &Response| inner.web.why_not_taken(answer);
    let downloaded = download(&draft.path, None, Patience::new(), closed, || {
        let request = inner.web.client.get(parsed.clone());
        match &kept {
            Some((tag, _)) => request.header(IF_NONE_MATCH, tag),
            None => request,
        }
    })
    .await
    .map_err(|failure| match failure {
        Failure::Local(error) => error,
        Failure::Status(status, _) => failed(problem_of(status, address), failure.is_transient()),
        // Words of a gateway's are none of theirs.
        Failure::Denied(_) | Failure::Unsupported(_) => {
            failed(problem_of(StatusCode::FORBIDDEN, address), false)
        }
        Failure::Closed(why) => failed(why.to_owned(), false),
        other => failed(other.text(), true),
    })?;

    let stop = Stop::default();
    let _stop = StopOnDrop(stop.clone());
    let (cache, to) = (Arc::clone(&inner.cache), target.clone());
    let fresh_id = downloaded.etag.as_deref().map(id);
    blocking(move || {
        let give = |from: &Path| {
            if own_copy { files::copy(from, &to, &stop) } else { files::link_read_only(from, &to) }
        };
        match (downloaded, kept, fresh_id) {
            (answer, Some((_, (path, _pin))), _) if !answer.sent => give(&path),
            (answer, _, Some(id)) => {
                let (path, _pin) = cache.keep(draft, Kind::Files, id)?;
                let tag = cache.draft();
                super::cache::write_draft(&tag, answer.etag.unwrap_or_default().as_bytes())?;
                cache.keep(tag, Kind::Files, tag_id)?;
                give(&path)
            }
            // Nothing says when it changes: it is this job's alone.
            _ => fs::copy(&draft.path, &to)
                .map(|_| ())
                .map_err(|error| Error::io("write", &to, error)),
        }
    })
    .await?;
    Ok(target)
}

fn problem_of(status: StatusCode, address: Option<&str>) -> String {
    let is_refusal = matches!(
        status,
        // Azure answers so of an account that lets nobody in without credentials.
        StatusCode::CONFLICT
            | StatusCode::NOT_FOUND
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
    );
    let address = address.filter(|_| is_refusal).and_then(|text| Address::parse(text).ok());
    if let Some(address) = address {
        let remedy = address.without_datastore();
        return format!("{status}: it is not there, or not public, and {remedy}");
    }
    let remedy = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => "correct the URL",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "the server wants credentials: upload the data, or use a URL that includes access"
        }
        _ if status.is_redirection() => {
            "it lies elsewhere, and the server does not say where: a bucket of \
             another region needs a datastore with that region"
        }
        _ if status.is_client_error() => "the server refuses the request",
        _ => "the server fails; try again later",
    };
    format!("{status}: {remedy}")
}

#[cfg(test)]
mod tests {
    use atelier_core::egress::Server;

    use super::*;

    #[test]
    fn names_come_from_the_last_segment_and_stay_in_the_folder() {
        for (url, expected) in [
            ("https://example.com/a/iris.csv?sig=1#x", "iris.csv"),
            ("https://example.com/a%20b.csv", "a b.csv"),
            ("https://example.com/", "data"),
            ("https://example.com", "data"),
            ("https://example.com/a/%2e%2e%2fetc%2fpasswd", ".._etc_passwd"),
            ("https://example.com/x/%2F..", "_.."),
        ] {
            assert_eq!(name_of(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn keys_in_a_url_are_not_repeated() {
        assert_eq!(
            shown("https://me:secret@example.com/a.csv?sig=abc#f"),
            "https://example.com/a.csv"
        );
        assert_eq!(shown("nonsense sig=abc"), "the URL");
    }

    /// A server that sends whoever asks elsewhere.
    async fn sending_to(place: &str) -> SocketAddr {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = format!(
            "HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn every_hop_of_a_redirect_is_looked_at() {
        let closed = Arc::new(Closed::with(&reach::Daemon::default()));
        // The first server is the admin's word; where it sends is not.
        let named = |servers: Vec<Server>| {
            let egress = Egress { servers, ..Egress::default() };
            Web::new(closed.clone(), Some(Arc::new(egress))).unwrap()
        };
        for place in [
            "http://127.0.0.1:1/x",
            "http://localhost:1/x",
            "http://127.0.0.2:1/x",
            "http://2130706434:1/x",
            "http://[::1]:1/x",
            "http://[::ffff:7f00:2]:1/x",
            "http://10.0.0.1/x",
        ] {
            let first = sending_to(place).await;
            let web = named(vec![Server::new("127.0.0.1", first.port())]);
            let asked = web.client.get(format!("http://{first}/")).send().await;
            match Failure::from(asked.unwrap_err()) {
                Failure::Closed(why) => assert!(why.contains("--allow-egress"), "{place}: {why}"),
                other => panic!("{place}: {other:?}"),
            }
        }
        // A name of the server that the admin means, at another port.
        let first = sending_to("http://localhost:1/x").await;
        let own = ["127.0.0.1", "localhost"].map(|host| Server::new(host, first.port()));
        let asked = named(own.to_vec()).client.get(format!("http://{first}/")).send().await;
        match Failure::from(asked.unwrap_err()) {
            Failure::Closed(why) => assert!(why.contains("another port"), "{why}"),
            other => panic!("{other:?}"),
        }
        let url = |port: u16| Url::parse(&format!("http://localhost:{port}/")).unwrap();
        let web = named(own.to_vec());
        assert!(web.why_closed(&url(first.port())).await.is_none());
        assert!(web.why_closed(&url(1)).await.is_some(), "also at first");
        // Nothing else is spoken.
        let file = sending_to("file:///etc/passwd").await;
        let answer = web.client.get(format!("http://{file}/")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FOUND);
        // The first look is at the URL itself.
        let none = Web::new(closed, Some(Arc::new(Egress::default()))).unwrap();
        for url in ["http://localhost:1/", "http://127.0.0.1:1/", "http://0x7f.1:1/"] {
            let why = none.why_closed(&Url::parse(url).unwrap()).await.unwrap();
            assert!(why.contains("loopback"), "{url}: {why}");
        }
    }
}
