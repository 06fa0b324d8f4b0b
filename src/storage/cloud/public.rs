//! Places that users name: buckets of clouds that everybody may read. They are asked without credentials, and at public
//! addresses only, or at those that an admin allows: the daemon may reach what others may not.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;

use atelier_core::datastore::{Credentials, PublicBucket, Source};
use atelier_core::egress::{Egress, Inside};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

use super::Cloud;
use super::client::{CONNECT, Retries, STILL, USER_AGENT};
use super::problem::Told;
use crate::storage::Error;

/// Who says where data lies.
#[derive(Clone, Debug)]
pub(super) enum Whose {
    /// An admin, whose word is taken.
    Admin,
    /// A user.
    User(PublicBucket, Arc<Egress>),
}

impl Whose {
    pub(super) fn connects(&self) -> Connects {
        match self {
            Self::Admin => Connects(None),
            Self::User(_, egress) => Connects(Some(egress.clone())),
        }
    }
}

/// Connects to stores: wherever they are, or where users may have the daemon go.
#[derive(Clone, Debug)]
pub(super) struct Connects(Option<Arc<Egress>>);

impl Connects {
    /// A client that follows nobody's directions, and goes where it may.
    fn guarded(egress: &Arc<Egress>) -> reqwest::Result<reqwest::Client> {
        reqwest::Client::builder()
            .redirect(Policy::none())
            .dns_resolver(Arc::new(Names(egress.clone())))
            .connect_timeout(CONNECT)
            .read_timeout(STILL)
            .http1_only()
            // Else the length of an answer is not the object's.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .user_agent(USER_AGENT)
            .build()
    }
}

impl HttpConnector for Connects {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let Some(egress) = &self.0 else { return ReqwestConnector::default().connect(options) };
        let failed =
            |error| object_store::Error::Generic { store: "HTTP", source: Box::new(error) };
        let client = HttpClient::new(Self::guarded(egress).map_err(failed)?);
        Ok(HttpClient::new(Guarded(client)))
    }
}

/// A client whose refusals are final.
#[derive(Debug)]
struct Guarded(HttpClient);

#[tonic::async_trait]
impl HttpService for Guarded {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.0.execute(request).await.map_err(|error| match not_open(&error) {
            // The library would take it for a connection that fails, and try again.
            Some(&why) => HttpError::new(HttpErrorKind::Unknown, why),
            None => error,
        })
    }
}

/// Looks up names once for each connection, which is made to what was found and looked at.
struct Names(Arc<Egress>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // A server that an admin has named may be anywhere.
            let refuses = |address: &SocketAddr| egress.refuses(address.ip());
            match found.iter().find_map(refuses).filter(|_| !egress.names_host(name.as_str())) {
                Some(inside) => Err(NotOpen(inside).into()),
                None => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}

/// That a bucket's name leads where users may not have the daemon go.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{}", .0.told())]
struct NotOpen(Inside);

fn not_open<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a NotOpen> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

const ELSEWHERE: &str = "the store says that it is elsewhere: have an admin make a datastore with the bucket's region \
                         or endpoint, and 'anonymous: true'";

impl Cloud {
    /// The error that a store's is, of a bucket that a user names: what will not be otherwise the next time is told at
    /// once.
    pub(super) fn problem_of_public(
        &self,
        bucket: &PublicBucket,
        (operation, path): (&'static str, &str),
        error: &object_store::Error,
        told: &Told,
    ) -> Error {
        use object_store::Error as E;
        let failed = |problem: String, passes: bool| {
            let address = bucket.address();
            let place = format!("{address}/{path}").trim_end_matches('/').to_owned();
            Error::Public { operation, place, problem, passes }
        };
        let is_closed = told.is_any(&["ResourceNotFound"]) || self.is_missing(error);
        match error {
            E::NotFound { .. } if operation == "read" && !is_closed => {
                return Error::NotFound(path.to_owned());
            }
            E::Precondition { .. } => return Error::Changed(path.to_owned()),
            _ => {}
        }
        if let Some(why) = not_open(error) {
            return failed(why.to_string(), false);
        }
        if told.is_elsewhere() {
            return failed(ELSEWHERE.to_owned(), false);
        }
        let is_answer = is_closed || matches!(error, E::NotFound { .. });
        if is_answer || !told.is_transient() {
            let remedy = bucket.address().without_datastore();
            let problem = format!(
                "{}: it is not there, or not everybody may {operation} it, and {remedy}",
                told.short()
            );
            return failed(problem, false);
        }
        let place = bucket.address();
        tracing::warn!(%place, operation, problem = told.short(), "public storage is away");
        failed(format!("its store cannot {operation} just now: {}", told.short()), true)
    }

    /// Where the data lies, with the region of a bucket of Amazon's if nobody has said it: to another one's server
    /// requests that are not signed are of no use.
    pub(super) async fn located(
        &self,
        credentials: &Credentials,
        retries: Retries,
    ) -> Result<Source, Error> {
        let source = &self.inner.source;
        let Source::S3 { bucket, endpoint: None, region: None, prefix, path_style } = source else {
            return Ok(source.clone());
        };
        if *credentials != Credentials::Anonymous {
            return Ok(source.clone());
        }
        // A name with dots in it is of no certificate.
        let url = match bucket.contains('.') {
            true => format!("https://s3.amazonaws.com/{bucket}"),
            false => format!("https://{bucket}.s3.amazonaws.com/"),
        };
        let mut pauses = retries.pauses();
        let region = loop {
            let failed = match region_of(&self.inner.whose, &url).await {
                Ok(region) => break region,
                Err(failed) => failed,
            };
            if let (Whose::User(bucket, _), Some(why)) = (&self.inner.whose, not_open(&failed)) {
                return Err(Error::Public {
                    operation: "read",
                    place: bucket.address().to_string(),
                    problem: why.to_string(),
                    passes: false,
                });
            }
            let Some(pause) = pauses.next() else {
                let store = "S3";
                let error = object_store::Error::Generic { store, source: Box::new(failed) };
                return Err(self.problem("read", "", error));
            };
            tokio::time::sleep(pause).await;
        };
        let (bucket, prefix, path_style) = (bucket.clone(), prefix.clone(), *path_style);
        Ok(Source::S3 { bucket, endpoint: None, region, prefix, path_style })
    }
}

/// The region of a bucket, which is told to everybody, whatever else the answer is; `None`: not to us.
async fn region_of(whose: &Whose, url: &str) -> reqwest::Result<Option<String>> {
    let client = match whose {
        Whose::User(_, egress) => Connects::guarded(egress)?,
        Whose::Admin => reqwest::Client::builder()
            .redirect(Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(STILL)
            .user_agent(USER_AGENT)
            .build()?,
    };
    let answer = client.head(url).send().await?;
    let told = answer.headers().get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
    // It becomes part of a host's name.
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    Ok(told.filter(|told| !told.is_empty() && told.chars().all(fits)).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use atelier_core::datastore::Address;
    use atelier_core::datastore::PublicServers;
    use atelier_core::egress::Server;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A server that answers all requests so.
    async fn answering(answer: &str) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, answer) = (listener.local_addr().unwrap(), answer.to_owned());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    fn bucket() -> PublicBucket {
        Address::parse("s3://open/x").unwrap().public_bucket().unwrap()
    }

    /// What is said of a bucket at this server, to whom an egress is this.
    async fn said_of(server: String, egress: Egress) -> Error {
        let servers = PublicServers { s3: Some(server), azure: None };
        let cloud = Cloud::public(bucket(), &servers, Arc::new(egress)).unwrap();
        cloud.list(None, "", 10).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_bucket_s_region_is_what_its_server_says() {
        for (head, expected) in [
            (
                "HTTP/1.1 301 Moved Permanently\r\nx-amz-bucket-region: eu-central-1\r\n",
                Some("eu-central-1"),
            ),
            ("HTTP/1.1 200 OK\r\nx-amz-bucket-region: us-east-1\r\n", Some("us-east-1")),
            ("HTTP/1.1 403 Forbidden\r\nx-amz-bucket-region: a.evil.example/\r\n", None),
            ("HTTP/1.1 404 Not Found\r\n", None),
        ] {
            let answer = format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n");
            let url = format!("http://{}/", answering(&answer).await);
            let told = region_of(&Whose::Admin, &url).await.unwrap();
            assert_eq!(told.as_deref(), expected, "{head}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused_at_once() {
        let server = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let url = format!("http://localhost:{}", server.port());
        let begun = std::time::Instant::now();
        match said_of(url.clone(), Egress::default()).await {
            Error::Public { problem, passes: false, .. } => {
                assert!(problem.contains("loopback"), "{problem}");
            }
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "it was tried again");
        // What an admin has named is reached: it answers, though not with a listing.
        let servers = vec![Server::new("localhost", server.port())];
        let said = said_of(url, Egress { servers, ..Egress::default() }).await.to_string();
        assert!(!said.contains("loopback"), "{said}");
    }

    #[tokio::test]
    async fn what_a_store_says_of_public_storage_is_told_with_what_to_do() {
        let answer = |head: &str, code: &str| {
            let body = format!("<Error><Code>{code}</Code></Error>");
            let length = body.len();
            format!(
                "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
        };
        for (answer, passes, words) in [
            (answer("403 Forbidden", "AccessDenied"), false, "not everybody may list it"),
            (answer("404 Not Found", "NoSuchBucket"), false, "atelier datastore create"),
            (answer("301 Moved", "PermanentRedirect"), false, "anonymous: true"),
            (answer("307 Go\r\nLocation: http://127.0.0.1:1/", "Go"), false, "elsewhere"),
        ] {
            let server = answering(&answer).await;
            let servers = vec![Server::new("127.0.0.1", server.port())];
            let egress = Egress { servers, ..Egress::default() };
            let said = said_of(format!("http://{server}"), egress).await;
            let told = said.to_string();
            assert!(told.contains("'s3://open'") && told.contains(words), "{answer}: {told}");
            let Error::Public { passes: found, .. } = said else { panic!("{told}") };
            assert_eq!(found, passes, "{told}");
        }
    }
}
