//! What a store's listing says, read here.
//!
//! The library would fail for a whole page with one key that is no path of its own, and would take other keys for
//! those that begin or end with a `/` or a space. It still asks: it signs, and tries again. What the store says is
//! read on the way and goes around the library, beside an answer that lists nothing.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use atelier_core::time::Timestamp;
use bytes::BytesMut;
use futures::TryStreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use percent_encoding::percent_decode_str;
use quick_xml::Reader;
use quick_xml::events::{BytesRef, Event};

use super::public::Connects;
use super::quoted;
use crate::storage::Meta;

/// The longest listing that is read, in bytes: 5000 names of 1024 characters fit well.
const MOST: usize = 64 << 20;

/// An object of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// Its whole key, as the store has it.
    pub(super) key: String,
    pub(super) meta: Meta,
}

/// What a store says to one request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Listing {
    /// In the store's order.
    pub(super) objects: Vec<Entry>,
    /// What keys begin with up to the next `/`, and that; if the request was for one level.
    pub(super) folders: Vec<String>,
    /// Where the next request continues.
    pub(super) next: Option<String>,
}

/// What a request for a listing carries through the library.
#[derive(Clone)]
pub(super) enum Asked {
    /// S3's: with what it is signed, and for which region; nothing, if it is not.
    S3(Option<(Arc<AwsCredential>, String)>),
    /// Google's, which is written as S3's is.
    Gcs,
    /// Azure's of blobs.
    Azure,
}

impl Asked {
    fn form(&self) -> Form {
        match self {
            Self::S3(_) | Self::Gcs => Form::S3,
            Self::Azure => Form::Blobs,
        }
    }

    /// An answer of which the library makes that there is nothing.
    fn nothing(&self) -> &'static str {
        match self {
            Self::S3(_) | Self::Gcs => "<ListBucketResult></ListBucketResult>",
            Self::Azure => "<EnumerationResults><Blobs></Blobs></EnumerationResults>",
        }
    }
}

/// Makes clients that read listings themselves.
#[derive(Debug)]
pub(super) struct ReadsListings(pub(super) Connects);

impl HttpConnector for ReadsListings {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.0.connect(options)?;
        Ok(HttpClient::new(ListingClient { client, encodes: OnceLock::new() }))
    }
}

#[derive(Debug)]
struct ListingClient {
    client: HttpClient,
    /// Whether the store encodes keys when it says so, once a page has told. Some repeat what they were asked and
    /// encode nothing.
    encodes: OnceLock<bool>,
}

#[tonic::async_trait]
impl HttpService for ListingClient {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let Some(asked) = request.extensions_mut().remove::<Asked>() else {
            return self.client.execute(request).await;
        };
        let plain = request.clone();
        if let Asked::S3(signed) = &asked
            && self.encodes.get() != Some(&false)
        {
            ask_for_encoded(&mut request, signed.as_ref())?;
        }
        let answer = self.client.execute(request).await?;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        let (mut head, body) = answer.into_parts();
        let mut page = raw(asked.form(), &whole(body).await?).map_err(failed)?;
        // Another page may have told meanwhile.
        page.is_encoded &= self.encodes.get() != Some(&false);
        if page.is_encoded && self.encodes.get().is_none() && page.odd().next().is_some() {
            let answer = self.client.execute(plain).await?;
            if !answer.status().is_success() {
                return Ok(answer);
            }
            // As they are, keys may make no XML; then the others were encoded.
            if let Ok(plain) = raw(asked.form(), &whole(answer.into_body()).await?)
                && let Some(encodes) = page.encodes(&plain)
            {
                let _ = self.encodes.set(encodes);
                page.is_encoded = encodes;
            }
        }
        head.extensions.insert(page.listing());
        head.headers.remove(CONTENT_LENGTH);
        Ok(HttpResponse::from_parts(head, asked.nothing().to_owned().into()))
    }
}

fn failed(problem: Odd) -> HttpError {
    // The library tries again what was broken off.
    let is_cut = matches!(problem, Odd(CUT));
    let kind = if is_cut { HttpErrorKind::Interrupted } else { HttpErrorKind::Decode };
    HttpError::new(kind, problem)
}

/// Has keys encoded as in addresses. XML cannot have all characters, and some servers put others in their place.
fn ask_for_encoded(
    request: &mut HttpRequest,
    signed: Option<&(Arc<AwsCredential>, String)>,
) -> Result<(), HttpError> {
    let failed = |error| HttpError::new(HttpErrorKind::Unknown, error);
    let address = format!("{}&encoding-type=url", request.uri());
    *request.uri_mut() = address
        .parse::<http::Uri>()
        .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
    // The library has signed the request without it.
    let Some((credential, region)) = signed else { return Ok(()) };
    request.headers_mut().remove(AUTHORIZATION);
    AwsAuthorizer::new(credential, "s3", region).try_authorize(request, None).map_err(failed)
}

async fn whole(body: HttpResponseBody) -> Result<BytesMut, HttpError> {
    let (mut all, mut pieces) = (BytesMut::new(), body.bytes_stream());
    while let Some(piece) = pieces.try_next().await? {
        add(&mut all, &piece).map_err(failed)?;
    }
    Ok(all)
}

/// Adds a piece of an answer to those before.
pub(super) fn add(all: &mut BytesMut, piece: &[u8]) -> Result<(), Odd> {
    if all.len() + piece.len() > MOST {
        return Err(Odd("more than 64 MiB"));
    }
    all.extend_from_slice(piece);
    Ok(())
}

/// A listing that is not as its documents say.
#[derive(Debug, thiserror::Error)]
#[error("the listing has {0}")]
pub(super) struct Odd(&'static str);

impl From<quick_xml::Error> for Odd {
    fn from(_: quick_xml::Error) -> Self {
        Self("XML that is none")
    }
}

const CUT: &str = "no end";
const NO_ROOT: &str = "no root element";

/// Whose listing it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// `ListObjectsV2`
    S3,
    /// `List Blobs`
    Blobs,
    /// `List Directories and Files`, whose names are without their folder's.
    Files,
}

impl Form {
    /// The element that is the whole.
    fn root(self) -> &'static str {
        match self {
            Self::S3 => "ListBucketResult",
            Self::Blobs | Self::Files => "EnumerationResults",
        }
    }

    /// What the elements right below the whole's mean.
    fn what(self, at: &str) -> What {
        let is_s3 = self == Self::S3;
        match at {
            "/EncodingType" if is_s3 => What::Encoding,
            "/NextContinuationToken" if is_s3 => What::Next,
            "/IsTruncated" if is_s3 => What::Truncated,
            "/Contents" if is_s3 => What::Object,
            "/Contents/Key" if is_s3 => What::Key,
            "/Contents/Size" if is_s3 => What::Size,
            "/Contents/LastModified" if is_s3 => What::Modified,
            "/Contents/ETag" if is_s3 => What::Tag,
            "/CommonPrefixes/Prefix" if is_s3 => What::Folder,
            "/NextMarker" if !is_s3 => What::Next,
            _ => match (self, at.strip_prefix("/Blobs/").or(at.strip_prefix("/Entries/"))) {
                (Self::Blobs, Some("BlobPrefix/Name")) => What::Folder,
                (Self::Files, Some("Directory/Name")) => What::Folder,
                (Self::Blobs | Self::Files, Some(below)) => below
                    .strip_prefix("Blob")
                    .or(below.strip_prefix("File"))
                    .map_or(What::Other, azure),
                _ => What::Other,
            },
        }
    }
}

fn azure(below: &str) -> What {
    match below {
        "" => What::Object,
        "/Name" => What::Key,
        "/Properties/Content-Length" => What::Size,
        "/Properties/Last-Modified" => What::Modified,
        "/Properties/Etag" => What::Tag,
        "/Properties/ResourceType" => What::Kind,
        _ => What::Other,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Object,
    Key,
    Size,
    Modified,
    Tag,
    Kind,
    Folder,
    Next,
    Truncated,
    Encoding,
    Other,
}

/// An object, as far as it is read.
#[derive(Default)]
struct Begun {
    key: Option<String>,
    size: Option<u64>,
    modified: Option<Timestamp>,
    tag: Option<String>,
    is_folder: bool,
}

impl Begun {
    /// `None`: it is a folder of a hierarchical account.
    fn done(self) -> Result<Option<Entry>, Odd> {
        let Self { key, size, modified, tag, is_folder } = self;
        if is_folder {
            return Ok(None);
        }
        let key = key.ok_or(Odd("an object without a name"))?;
        let size = size.ok_or(Odd("an object without a size"))?;
        let modified = modified.ok_or(Odd("an object without a time"))?;
        let etag = match tag {
            Some(tag) => quoted(&tag),
            None => format!("\"{:x}-{size:x}\"", modified.as_millis()),
        };
        Ok(Some(Entry { key, meta: Meta { size, etag, modified } }))
    }
}

/// A listing with keys as they are written.
#[derive(Debug)]
struct Raw {
    listing: Listing,
    /// Whether the store says that keys are encoded as in addresses.
    is_encoded: bool,
}

impl Raw {
    fn keys(&self) -> impl Iterator<Item = &str> {
        let objects = self.listing.objects.iter().map(|object| object.key.as_str());
        objects.chain(self.listing.folders.iter().map(String::as_str))
    }

    /// Keys that are others if they are encoded than if they are not.
    fn odd(&self) -> impl Iterator<Item = &str> {
        self.keys().filter(|key| key.contains(['+', '%']))
    }

    /// Whether keys are encoded, by the same page without; `None`: it may have changed meanwhile.
    fn encodes(&self, plain: &Self) -> Option<bool> {
        let plain: HashSet<&str> = plain.keys().collect();
        // The longest that is encoded is not among those that are not.
        if self.odd().all(|key| plain.contains(key)) {
            return Some(false);
        }
        let is_only_encoded =
            |key: &str| !plain.contains(key) && plain.contains(form_decoded(key).as_str());
        self.odd().any(is_only_encoded).then_some(true)
    }

    fn listing(self) -> Listing {
        let Self { mut listing, is_encoded } = self;
        if is_encoded {
            let keys = listing.objects.iter_mut().map(|object| &mut object.key);
            keys.chain(&mut listing.folders).for_each(|key| *key = form_decoded(key));
        }
        listing
    }
}

/// Reads a listing.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(form: Form, xml: &[u8]) -> Result<Listing, Odd> {
    raw(form, xml).map(Raw::listing)
}

fn raw(form: Form, xml: &[u8]) -> Result<Raw, Odd> {
    let mut reader = Reader::from_reader(xml);
    reader.config_mut().expand_empty_elements = true;
    // Where it is, as `/Contents/Key`, below the element that is the whole.
    let (mut at, mut depth, mut text) = (String::new(), 0_u32, String::new());
    let (mut listing, mut begun) = (Listing::default(), Begun::default());
    let (mut is_encoded, mut are_encoded, mut is_truncated) = (false, false, false);
    loop {
        let event = match reader.read_event() {
            // Broken off within a tag.
            Err(quick_xml::Error::Syntax(_)) if depth > 0 => return Err(Odd(CUT)),
            event => event?,
        };
        match event {
            Event::Start(start) if depth == 0 => {
                if start.local_name().as_ref() != form.root().as_bytes() {
                    return Err(Odd("another root element than a listing's"));
                }
                depth = 1;
                text.clear();
            }
            Event::Start(start) => {
                at.push('/');
                at.push_str(&String::from_utf8_lossy(start.local_name().as_ref()));
                depth += 1;
                text.clear();
                let encoded = start.try_get_attribute("Encoded").map_err(quick_xml::Error::from)?;
                is_encoded = encoded.is_some_and(|encoded| *encoded.value == *b"true");
            }
            Event::Text(more) => text.push_str(&more.decode().map_err(quick_xml::Error::from)?),
            Event::CData(more) => text.push_str(&more.decode().map_err(quick_xml::Error::from)?),
            Event::GeneralRef(reference) => text.push(character(&reference)),
            Event::End(_) => {
                let text = std::mem::take(&mut text);
                let name = |text: String| if is_encoded { decoded(&text) } else { text };
                match form.what(&at) {
                    What::Object => listing.objects.extend(std::mem::take(&mut begun).done()?),
                    What::Key => begun.key = Some(name(text)),
                    What::Size => {
                        begun.size = Some(text.parse().map_err(|_| Odd("a size that is none"))?);
                    }
                    What::Modified => begun.modified = Some(time(form, &text)?),
                    What::Tag => begun.tag = Some(text).filter(|tag| !tag.is_empty()),
                    What::Kind => begun.is_folder = text == "directory",
                    What::Folder => listing.folders.push(name(text)),
                    What::Next => listing.next = Some(text).filter(|next| !next.is_empty()),
                    What::Truncated => is_truncated = text == "true",
                    What::Encoding => are_encoded = text == "url",
                    What::Other => {}
                }
                is_encoded = false;
                at.truncate(at.rfind('/').unwrap_or(0));
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            Event::Eof if depth == 0 => return Err(Odd(NO_ROOT)),
            Event::Eof => return Err(Odd(CUT)),
            _ => {}
        }
    }
    if is_truncated && listing.next.is_none() {
        return Err(Odd("more to come and nothing to ask for it with"));
    }
    Ok(Raw { listing, is_encoded: are_encoded })
}

/// As forms are: a space may be a '+'.
fn form_decoded(key: &str) -> String {
    decoded(&key.replace('+', " "))
}

/// What is no text is made none: no path has a NUL. Its folders stay what they are.
fn decoded(text: &str) -> String {
    let bytes = percent_decode_str(text);
    match bytes.clone().decode_utf8() {
        Ok(text) => text.into_owned(),
        Err(_) => format!("{}\0", bytes.decode_utf8_lossy()),
    }
}

fn character(reference: &BytesRef<'_>) -> char {
    match &**reference {
        b"lt" => '<',
        b"gt" => '>',
        b"amp" => '&',
        b"apos" => '\'',
        b"quot" => '"',
        _ => reference.resolve_char_ref().ok().flatten().unwrap_or('\0'),
    }
}

fn time(form: Form, text: &str) -> Result<Timestamp, Odd> {
    let read = match form {
        Form::S3 => text.parse::<jiff::Timestamp>(),
        Form::Blobs | Form::Files => {
            jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text)
        }
    };
    let read = read.map_err(|_| Odd("a time that is none"))?;
    Ok(Timestamp::from_millis(read.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(listing: &Listing) -> Vec<&str> {
        listing.objects.iter().map(|object| object.key.as_str()).collect()
    }

    fn s3(key: &str) -> String {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>\
             <ETag>&quot;e&quot;</ETag><Size>7</Size><Owner><ID>Key</ID></Owner></Contents>"
        )
    }

    #[test]
    fn keys_of_s3_are_what_they_are() {
        let all = ["a b", "  a ", "x&amp;y&#x1;&#10;<![CDATA[ <c> ]]>", "/a", "a//b/", "", "%2B+"];
        let listing = |encoding: &str, keys: &[&str]| {
            let objects: String = keys.iter().map(|key| s3(key)).collect();
            let xml = format!(
                "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"http://s3\"> <Prefix>no</Prefix>{objects}\n\
                 <CommonPrefixes><Prefix>c+d/</Prefix></CommonPrefixes>\
                 <NextContinuationToken>t%20k+</NextContinuationToken>{encoding}</ListBucketResult>\n"
            );
            read(Form::S3, xml.as_bytes()).unwrap()
        };
        let plain = listing("", &all);
        let expected = ["a b", "  a ", "x&y\u{1}\n <c> ", "/a", "a//b/", "", "%2B+"];
        assert_eq!(keys(&plain), expected);
        assert_eq!(
            (&*plain.folders, plain.next.as_deref()),
            (&["c+d/".to_owned()][..], Some("t%20k+"))
        );
        let modified = "2026-01-02T03:04:05.678Z".parse::<jiff::Timestamp>().unwrap();
        let modified = Timestamp::from_millis(modified.as_millisecond());
        let meta = Meta { size: 7, etag: "\"e\"".to_owned(), modified };
        assert!(plain.objects.iter().all(|object| object.meta == meta));
        // As servers write them that were asked to encode, and say that they did.
        let encoded = listing(
            "<EncodingType>url</EncodingType>",
            &["a+b%2B%01", "a%20b/%C3%BC%25", "%C3%BC/%FF", "a%0Ab", "plain"],
        );
        assert_eq!(keys(&encoded), ["a b+\u{1}", "a b/ü%", "ü/\u{fffd}\0", "a\nb", "plain"]);
        assert_eq!(
            (&*encoded.folders, encoded.next.as_deref()),
            (&["c d/".to_owned()][..], Some("t%20k+"))
        );
    }

    #[test]
    fn names_of_azure_are_what_they_are() {
        let object = |element: &str, name: &str, more: &str| {
            format!(
                "<{element}>{name}<Properties><Last-Modified>Fri, 02 Jan 2026 03:04:05 GMT</Last-Modified>\
                 <Etag>0x1</Etag><Content-Length>7</Content-Length>{more}</Properties></{element}>"
            )
        };
        let blobs = [
            object("Blob", "<Name> a </Name>", ""),
            object("Blob", "<Name Encoded=\"true\">b%EF%BF%BF+</Name>", ""),
            object("Blob", "<Name Encoded=\"true\">a%0Ab</Name>", ""),
            object("Blob", "<Name>c+%20</Name>", "<ResourceType>file</ResourceType>"),
            object("Blob", "<Name>d</Name>", "<ResourceType>directory</ResourceType>"),
        ];
        let xml = format!(
            "\u{feff}<?xml version=\"1.0\"?><EnumerationResults><Prefix>x</Prefix><Blobs>{}\
             <BlobPrefix><Name>e//</Name></BlobPrefix></Blobs><NextMarker/></EnumerationResults>",
            blobs.concat()
        );
        let listing = read(Form::Blobs, xml.as_bytes()).unwrap();
        assert_eq!(keys(&listing), [" a ", "b\u{ffff}+", "a\nb", "c+%20"]);
        assert_eq!((&*listing.folders, listing.next.as_deref()), (&["e//".to_owned()][..], None));
        assert_eq!((listing.objects[0].meta.size, &*listing.objects[0].meta.etag), (7, "\"0x1\""));
        let xml = format!(
            "<EnumerationResults><Entries>{}<Directory><Name>g</Name><Properties/></Directory></Entries>\
             <NextMarker>m</NextMarker></EnumerationResults>",
            object("File", "<Name>f</Name>", "")
        );
        let listing = read(Form::Files, xml.as_bytes()).unwrap();
        assert_eq!(keys(&listing), ["f"]);
        assert_eq!(
            (&*listing.folders, listing.next.as_deref()),
            (&["g".to_owned()][..], Some("m"))
        );
    }

    #[test]
    fn what_is_no_listing_is_an_error() {
        let cut = format!("<ListBucketResult>{}", s3("a"));
        let inner = |inner: &str| format!("<ListBucketResult>{inner}</ListBucketResult>");
        for (xml, problem) in [
            ("", NO_ROOT),
            ("{\"objects\": []}", NO_ROOT),
            ("<?xml version=\"1.0\"?>", NO_ROOT),
            ("<a/>", "another root element"),
            ("<EnumerationResults/>", "another root element"),
            ("<html><body>Log in</body></html>", "another root element"),
            (&*cut, CUT),
            ("<ListBucketResult><Contents", CUT),
            (&*inner("<b>"), "XML"),
            (&*inner("<Contents></Contents>"), "without a name"),
            (&*inner("<Contents><Key>a</Key></Contents>"), "without a size"),
            (&*inner("<Contents><Size>-1</Size></Contents>"), "a size that is none"),
            (&*inner("<Contents><LastModified>now</LastModified></Contents>"), "a time"),
            (&*inner("<IsTruncated>true</IsTruncated>"), "more to come"),
        ] {
            let error = read(Form::S3, xml.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(problem), "{xml}: {error}");
        }
        let error = read(Form::Blobs, inner("").as_bytes()).unwrap_err().to_string();
        assert!(error.contains("another root element"), "{error}");
        for whole in ["<ListBucketResult/>", "<s3:ListBucketResult></s3:ListBucketResult>"] {
            assert_eq!(read(Form::S3, whole.as_bytes()).unwrap(), Listing::default());
        }
    }

    #[test]
    fn answers_are_read_up_to_a_bound() {
        let mut all = BytesMut::zeroed(MOST - 1);
        add(&mut all, b"x").unwrap();
        let error = add(&mut all, b"x").unwrap_err().to_string();
        assert!(error.contains("more than 64 MiB"), "{error}");
    }

    #[test]
    fn whether_keys_are_encoded_is_seen_by_those_that_are_not() {
        let page = |keys: &[&str]| {
            let objects: String = keys.iter().map(|key| s3(key)).collect();
            raw(Form::S3, format!("<ListBucketResult>{objects}</ListBucketResult>").as_bytes())
                .unwrap()
        };
        let cases: [(&[&str], &[&str], Option<bool>); 7] = [
            (&["a+b", "a b"], &["a+b", "a b"], Some(false)),
            (&["a%20b", "ab"], &["a%20b", "ab"], Some(false)),
            (&["a+b", "a%2Bb"], &["a b", "a+b"], Some(true)),
            (&["a%2520b", "a%20b"], &["a%20b", "a b"], Some(true)),
            // One that XML cannot have, beside another.
            (&["a%01", "b%25"], &["a?", "b%"], Some(true)),
            (&["a%01"], &["a?"], None),
            (&["a+b"], &[], None),
        ];
        for (asked, plain, encodes) in cases {
            assert_eq!(page(asked).encodes(&page(plain)), encodes, "{asked:?}");
        }
    }
}
