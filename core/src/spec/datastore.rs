//! The reader of datastores' files: from Azure ML's YAML, and this project's own types, to a
//! [`Definition`].

use super::diagnostic::{Diagnostic, Diagnostics, Mark, Report};
use super::job::{Reader, chosen, document, failed, given, locate, text};
use super::limits::{MAX_DESCRIPTION, MAX_VALUE};
use super::origin::{Files, Origin, resolve};
use super::overrides::{self, Override};
use super::shape::{self, Object, Shape, boolean, join, word};
use super::validate::{Check, report};
use super::yaml::{self, Node};
use crate::datastore::{
    AzureStorage, Credentials, Definition, Draft, FolderKind, FolderSource, Malformed, OneLake,
    Proof, PublicBucket, Secret, ServicePrincipal, Source,
};
use crate::id::DatastoreName;
use crate::suggest;

mod fields;

use fields::RETIRED;
pub(super) use fields::TYPES;

const EXAMPLE: &str = "name: datasets";
/// Bytes of a folder's path, as Linux allows.
const MAX_PATH: usize = 4095;
/// Bytes of a bucket's or an account's name.
const MAX_LABEL: usize = 255;
/// Bytes of a prefix; a store's keys have 1024.
const MAX_PREFIX: usize = 512;
/// Bytes of a server's URL.
const MAX_ADDRESS: usize = 1024;
/// Bytes of a certificate with its key.
const MAX_CERTIFICATE: usize = 24 << 10;
const SHORTER: &str = "write less";
const PATH_RULE: &str = "write an absolute path of the daemon's machine without '.' and '..', for example \
                         /srv/datasets";

/// A datastore that was read, and what its author should know.
#[derive(Clone, PartialEq, Debug)]
pub struct ParsedDatastore {
    /// The datastore.
    pub definition: Definition,
    /// What is accepted and does nothing, or means something else than it seems to.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a datastore's YAML, with `changes` applied to it in order. No diagnostic shows what stands
/// under `credentials`.
///
/// # Errors
/// Everything that is wrong with it, as far as it can be told apart, each with its place.
pub fn parse_datastore(
    text: &[u8],
    origin: &Origin,
    changes: &[Override],
    files: &dyn Files,
) -> Result<ParsedDatastore, Diagnostics> {
    let mut report = Report::default();
    let Some(mut root) = document(text, &origin.name, EXAMPLE, &mut report) else {
        // Where a text that cannot be read has its secrets is not known.
        let lines = text.split(|&byte| byte == b'\n').count();
        for line in 1..=u32::try_from(lines).unwrap_or(u32::MAX) {
            report.hide(Mark { line, ..Mark::default() });
        }
        return Err(failed(report));
    };
    if let Some(credentials) = root.get("credentials") {
        hide(credentials, &mut report);
    }
    for change in changes {
        overrides::apply(&mut root, change, &mut report);
    }
    let object = match report.has_errors() {
        true => None,
        false => object_of(&root, &mut report),
    };
    if let Some((_, object)) = object {
        shape::check(&root, &Shape::Object(object), "", &mut report);
    }
    let Some((kind, _)) = object.filter(|_| !report.has_errors()) else {
        return Err(failed(report));
    };
    let mut reader = Reader { report, files, origin };
    let definition = reader.datastore(&root, kind);
    let mut report = reader.report;
    let Some(definition) = definition.filter(|_| !report.has_errors()) else {
        return Err(failed(report));
    };
    for finding in faults(&definition).found.first {
        locate(&root, finding, &mut report);
    }
    report.finish().map(|warnings| ParsedDatastore { definition, warnings })
}

/// Keeps every line of the node from being shown.
fn hide(node: &Node, report: &mut Report) {
    report.hide(node.mark);
    for entry in node.entries() {
        report.hide(entry.key.mark);
        hide(&entry.value, report);
    }
    node.items().iter().for_each(|item| hide(item, report));
}

/// The document's type, and what it may hold; reports it if it has none.
fn object_of(root: &Node, report: &mut Report) -> Option<(&'static str, &'static Object)> {
    let known = || TYPES.iter().map(|(kind, _)| *kind);
    let all = known().collect::<Vec<_>>();
    let Some(node) = given(root, "type") else {
        report
            .error(root.mark, "type", "the datastore has no 'type'")
            .help(format!("write 'type:' with one of {}", all.join(", ")));
        return None;
    };
    let Some(text) = node.as_text() else {
        let message = format!("'type': expected text, found {}", node.describe());
        report.error(node.mark, "type", message);
        return None;
    };
    if word(text, &[RETIRED]).is_some() {
        report
            .error(
                node.mark,
                "type",
                "Azure has retired Data Lake Storage Gen1, and with it its datastores",
            )
            .help("move the data to Gen2, and write 'type: azure_data_lake_gen2'");
        return None;
    }
    let Some(kind) = word(text, &all) else {
        let short = yaml::shorten(text);
        let message = format!("there is no datastore type '{short}'");
        let all = all.join(", ");
        report.error(node.mark, "type", message).help(match suggest::closest(text, known()) {
            Some(near) => format!("did you mean '{near}'? (known: {all})"),
            None => format!("known: {all}"),
        });
        return None;
    };
    TYPES.iter().find(|(known, _)| *known == kind).map(|(kind, object)| (*kind, *object))
}

impl Reader<'_> {
    /// The datastore, as far as it can be read; faults are reported.
    fn datastore(&mut self, root: &Node, kind: &str) -> Option<Definition> {
        let name = match given(root, "name") {
            Some(node) => self.name(node, "name", DatastoreName::new),
            None => {
                self.report.error(root.mark, "name", "the datastore has no 'name'").help(format!(
                    "write how jobs call it, for example '{EXAMPLE}', or give --name"
                ));
                None
            }
        };
        let source = self.source(root, kind);
        let credentials = match given(root, "credentials") {
            None if self.is_anonymous(root) => Some(Some(Credentials::Anonymous)),
            None => Some(None),
            Some(node) => self.credentials(root, kind).map(|read| Some(self.formed(node, read))),
        };
        let (tags, properties) = (self.pairs(root, "tags"), self.pairs(root, "properties"));
        Some(Definition {
            name: name?,
            description: text(root, "description"),
            tags,
            properties,
            source: source?,
            credentials: credentials?,
        })
    }

    fn source(&mut self, root: &Node, kind: &str) -> Option<Source> {
        Some(match kind {
            "azure_blob" => Source::AzureBlob(self.azure(root, "container_name", "https")?),
            "azure_file" => Source::AzureFile(self.azure(root, "file_share_name", "https")?),
            "azure_data_lake_gen2" => {
                Source::AzureDataLakeGen2(self.azure(root, "filesystem", "https")?)
            }
            "one_lake" => {
                let workspace = self.required(root, "", "one_lake_workspace_name");
                let lakehouse = match given(root, "artifact") {
                    Some(artifact) => self.required(artifact, "artifact", "name"),
                    None => self.required(root, "", "artifact"),
                };
                Source::OneLake(OneLake {
                    workspace: workspace?,
                    lakehouse: lakehouse?,
                    endpoint: text(root, "endpoint"),
                })
            }
            "s3" => Source::S3 {
                bucket: self.required(root, "", "bucket")?,
                endpoint: text(root, "endpoint"),
                region: text(root, "region"),
                prefix: prefix(root),
                path_style: given(root, "path_style").and_then(boolean).unwrap_or(false),
            },
            "gcs" => {
                Source::Gcs { bucket: self.required(root, "", "bucket")?, prefix: prefix(root) }
            }
            "http" => Source::Http { url: self.required(root, "", "url")? },
            _ => Source::Folder(FolderSource {
                kind: if kind == "nfs" { FolderKind::Nfs } else { FolderKind::Local },
                path: self.required(root, "", "path")?,
            }),
        })
    }

    /// The text of a key that has to be there.
    fn required(&mut self, node: &Node, path: &str, key: &str) -> Option<String> {
        let found = text(node, key).filter(|text| !text.trim().is_empty());
        if found.is_none() {
            let at = join(path, key);
            let what = if path.is_empty() { "the datastore" } else { path };
            self.report
                .error(given(node, key).unwrap_or(node).mark, &at, format!("{what} has no '{key}'"))
                .help(format!("add '{key}:'"));
        }
        found
    }

    fn azure(&mut self, root: &Node, container: &str, protocol: &str) -> Option<AzureStorage> {
        let account_name = self.required(root, "", "account_name");
        let container = self.required(root, "", container);
        Some(AzureStorage {
            account_name: account_name?,
            container: container?,
            endpoint: text(root, "endpoint").unwrap_or_else(|| "core.windows.net".to_owned()),
            protocol: chosen(root, "protocol", &["https", "wasbs", "abfss"])
                .unwrap_or(protocol)
                .to_owned(),
        })
    }

    /// Credentials as they were read; reports it if they cannot be what they are said to be.
    fn formed(&mut self, node: &Node, read: Credentials) -> Credentials {
        if let Some(Malformed { field, problem, help }) = read.malformed() {
            let mark = node.get(field).map_or(node.mark, |found| found.mark);
            let at = join("credentials", field);
            self.report.error(mark, &at, format!("'{field}': {problem}")).help(help);
        }
        read
    }

    /// Whether requests are not to be signed; reports it if there are credentials all the same.
    fn is_anonymous(&mut self, root: &Node) -> bool {
        given(root, "anonymous").and_then(boolean).unwrap_or(false)
    }

    /// The credentials, of which one kind has to be there as a whole, or none.
    fn credentials(&mut self, root: &Node, kind: &str) -> Option<Credentials> {
        let Some(node) = given(root, "credentials").filter(|node| !node.entries().is_empty())
        else {
            return Some(if self.is_anonymous(root) {
                Credentials::Anonymous
            } else {
                Credentials::None
            });
        };
        if self.is_anonymous(root) {
            self.report
                .error(
                    node.mark,
                    "credentials",
                    "there are credentials, and 'anonymous' says that there are none",
                )
                .help("keep one of the two");
            return None;
        }
        match kind {
            "s3" => {
                let access_key_id = self.required(node, "credentials", "access_key_id");
                let secret_access_key = self.secret(node, "secret_access_key");
                Some(Credentials::S3Keys {
                    access_key_id: access_key_id?,
                    secret_access_key: secret_access_key?,
                    session_token: text(node, "session_token").map(Secret::new),
                })
            }
            "gcs" => {
                let key = given(node, "service_account")?;
                let json = key.as_text().map_or_else(|| key.to_json().to_string(), str::to_owned);
                Some(Credentials::ServiceAccount(Secret::new(json)))
            }
            _ => self.azure_credentials(node),
        }
    }

    fn secret(&mut self, node: &Node, key: &str) -> Option<Secret> {
        self.required(node, "credentials", key).map(Secret::new)
    }

    /// A certificate with its key: as it is in PEM, or the file that has it.
    fn certificate(&mut self, node: &Node) -> Option<Secret> {
        let given = self.required(node, "credentials", "certificate")?;
        if given.contains("-----BEGIN") {
            return Some(Secret::new(given));
        }
        let at = resolve(&self.origin.folder, &given);
        let read = self.files.read(&at).map_err(|problem| format!("cannot be read: {problem}"));
        let read = read.and_then(|bytes| match bytes.len() > MAX_CERTIFICATE {
            true => Err(format!("has more than {MAX_CERTIFICATE} bytes")),
            false => String::from_utf8(bytes).map_err(|_| "is not PEM".to_owned()),
        });
        match read {
            Ok(pem) => Some(Secret::new(pem)),
            Err(problem) => {
                let mark = node.get("certificate").map_or(node.mark, |found| found.mark);
                // What was given may be part of the certificate.
                self.report
                    .error(mark, "credentials.certificate", format!("the certificate's file {problem}"))
                    .help("write the path of a PEM file with the certificate and its private key, or their text");
                None
            }
        }
    }

    fn azure_credentials(&mut self, node: &Node) -> Option<Credentials> {
        const PRINCIPAL: [&str; 7] = [
            "tenant_id",
            "client_id",
            "client_secret",
            "certificate",
            "thumbprint",
            "authority_url",
            "resource_url",
        ];
        let has = |key: &str| given(node, key).is_some();
        let is_principal = PRINCIPAL.iter().any(|key| has(key));
        let proofs = [has("client_secret"), has("certificate") || has("thumbprint")];
        let kinds = [has("account_key"), has("sas_token"), is_principal];
        let one = |many: &[bool]| many.iter().filter(|given| **given).count() <= 1;
        if !one(&kinds) || !one(&proofs) {
            self.report
                .error(node.mark, "credentials", "there are credentials of more than one kind")
                .help(
                    "keep one: account_key; sas_token; tenant_id, client_id and client_secret; or tenant_id, \
                     client_id, certificate and thumbprint",
                );
            return None;
        }
        if has("account_key") {
            return self.secret(node, "account_key").map(Credentials::AccountKey);
        }
        if has("sas_token") {
            return self.secret(node, "sas_token").map(Credentials::SasToken);
        }
        if !is_principal {
            return Some(Credentials::None);
        }
        let tenant_id = self.required(node, "credentials", "tenant_id");
        let client_id = self.required(node, "credentials", "client_id");
        let proof = if proofs[1] {
            let certificate = self.certificate(node);
            let thumbprint = self.required(node, "credentials", "thumbprint");
            certificate
                .zip(thumbprint)
                .map(|(certificate, thumbprint)| Proof::Certificate { certificate, thumbprint })
        } else {
            self.secret(node, "client_secret").map(Proof::ClientSecret)
        };
        Some(Credentials::ServicePrincipal(ServicePrincipal {
            tenant_id: tenant_id?,
            client_id: client_id?,
            proof: proof?,
            authority_url: text(node, "authority_url"),
            resource_url: text(node, "resource_url"),
        }))
    }
}

/// Checks a datastore that was sent to the daemon; see [`Draft::check`].
///
/// # Errors
/// Every fault, each with its field.
pub fn validate_datastore(draft: &Draft) -> Result<(), Diagnostics> {
    let mut check = Check::default();
    name(&mut check, &draft.name);
    about(&mut check, draft.description.as_deref(), [&draft.tags, &draft.properties]);
    place(&mut check, &draft.source);
    report(check.found)
}

/// Every fault that a reader may leave.
fn faults(definition: &Definition) -> Check {
    let mut check = Check::default();
    let Definition { name: called, description, tags, properties, source, .. } = definition;
    name(&mut check, called);
    about(&mut check, description.as_deref(), [tags, properties]);
    place(&mut check, source);
    check
}

fn name(check: &mut Check, name: &DatastoreName) {
    if PublicBucket::has_name(name.as_str()) {
        check.at(&["name"]).fault(
            format!("'{}' stands for storage that is no datastore's", yaml::shorten(name.as_str())),
            "choose a name that does not begin with 'public-storage.'",
        );
    }
}

fn about(
    check: &mut Check,
    description: Option<&str>,
    [tags, properties]: [&std::collections::BTreeMap<String, String>; 2],
) {
    if let Some(text) = description {
        check.at(&["description"]).size(text, MAX_DESCRIPTION, SHORTER);
    }
    check.pairs("tags", tags, SHORTER);
    check.pairs("properties", properties, SHORTER);
}

/// Where the data lies: every part becomes part of a URL.
fn place(check: &mut Check, source: &Source) {
    match source {
        Source::AzureBlob(azure) => account(check, azure, "container_name"),
        Source::AzureFile(azure) => account(check, azure, "file_share_name"),
        Source::AzureDataLakeGen2(azure) => account(check, azure, "filesystem"),
        Source::OneLake(OneLake { workspace, lakehouse, endpoint }) => {
            label(check, "one_lake_workspace_name", workspace);
            label(check, "artifact", lakehouse);
            endpoint.iter().for_each(|host| server(check, host));
        }
        Source::S3 { bucket, endpoint, region, prefix, path_style: _ } => {
            label(check, "bucket", bucket);
            region.iter().for_each(|region| label(check, "region", region));
            endpoint.iter().for_each(|url| address(check, "endpoint", url));
            prefix.iter().for_each(|prefix| key(check, prefix));
        }
        Source::Gcs { bucket, prefix } => {
            label(check, "bucket", bucket);
            prefix.iter().for_each(|prefix| key(check, prefix));
        }
        Source::Folder(found) => folder(check, found),
        Source::Http { url } => address(check, "url", url),
    }
}

fn account(check: &mut Check, azure: &AzureStorage, container: &str) {
    label(check, "account_name", &azure.account_name);
    label(check, container, &azure.container);
    server(check, &azure.endpoint);
}

/// A host, or the URL of a server.
fn server(check: &mut Check, endpoint: &str) {
    match endpoint.contains("://") {
        true => address(check, "endpoint", endpoint),
        false => label(check, "endpoint", endpoint),
    }
}

/// A part of a host's name, or of a path.
fn label(check: &mut Check, key: &str, text: &str) {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '$');
    check.at(&[key]).size(text, MAX_LABEL, SHORTER);
    if text.is_empty() || !text.chars().all(fits) || text.contains("..") {
        let short = yaml::shorten(text);
        check.fault(
            format!("'{key}': '{short}' cannot be a name there"),
            "use letters, digits, '-', '_' and '.'",
        );
    }
}

/// What all paths start with.
fn key(check: &mut Check, prefix: &str) {
    check.at(&["prefix"]).size(prefix, MAX_PREFIX, SHORTER);
    let odd = |segment: &str| matches!(segment, "" | "." | "..");
    if prefix.split('/').any(odd) || prefix.contains('\\') || prefix.contains(char::is_control) {
        let short = yaml::shorten(prefix);
        check.fault(
            format!("'prefix': '{short}' is no path of a bucket"),
            "write it as a/b, without '//', '.', '..' and '\\'",
        );
    }
}

fn address(check: &mut Check, key: &str, url: &str) {
    check.at(&[key]).size(url, MAX_VALUE.min(MAX_ADDRESS), SHORTER);
    // What opens the data must not lie where all can read it.
    if url.contains(['?', '#', '@']) || url.contains(|c: char| c.is_control() || c == ' ') {
        check.fault(
            format!("'{key}': an address without '?', '#', '@' and blanks is needed"),
            "give keys and tokens under 'credentials'",
        );
        return;
    }
    if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) {
        let short = yaml::shorten(url);
        check.at(&[key]).fault(
            format!("'{key}': '{short}' is not the address of a server"),
            "start it with https:// or http://",
        );
    }
}

/// The prefix, without `/` at its ends.
fn prefix(root: &Node) -> Option<String> {
    let prefix = text(root, "prefix")?.trim_matches('/').to_owned();
    (!prefix.is_empty()).then_some(prefix)
}

/// A path that can only mean one folder, and not all of the machine.
fn folder(check: &mut Check, folder: &FolderSource) {
    let FolderSource { kind: _, path } = folder;
    check.at(&["path"]).size(path, MAX_PATH, PATH_RULE);
    let short = yaml::shorten(path);
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    if !path.starts_with('/') {
        check.fault(format!("'path': '{short}' is not an absolute path"), PATH_RULE);
    } else if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        check.fault(format!("'path': '{short}' has '.' or '..' in it"), PATH_RULE);
    } else if segments.next().is_none() {
        let all = "'path': a datastore cannot be the whole of the machine's files";
        check.fault(all, "name a folder below '/'");
    }
}
