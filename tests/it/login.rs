//! Logging in to PostgreSQL: the outcome of each `sslmode`, password method and certificate, and
//! the message if it fails.
//!
//! Owns the certificates and the host-based rules of its servers. Every case is tried for both
//! kinds of connection, replication and ordinary SQL, which must not differ. Servers are real,
//! except those that misbehave.

use std::fs::Permissions;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::stream::{self, StreamExt as _};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, SignatureAlgorithm, date_time_ymd,
};
use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use unstale::postgres::{self, Address, ConnectError};
use unstale::sandbox::Postgres;
use unstale::source::replication::connection::Connection;

use crate::support::{EVENT_MAX, template, wait_until};

/// A password with every character that is special in a URL.
const PASSWORD: &str = "p@ss:w/rd%";

/// [`PASSWORD`] as a URL has it.
const ENCODED: &str = "p%40ss%3Aw%2Frd%25";

/// A wrong password.
const WRONG: &str = "gu%3Fss";

/// The expected outcome: the channel that the server reports, or parts of the error's text.
type Expected = Result<&'static str, &'static [&'static str]>;
const PLAIN: Expected = Ok("plain");
const TLS: Expected = Ok("TLS");

/// A part that every error has.
const SOME: &[&str] = &["PostgreSQL"];

const CHANNEL: &str = "select case when ssl then 'TLS' else 'plain' end from pg_stat_ssl where pid = pg_backend_pid()";

async fn log_in_for_replication(address: &Address) -> Result<String, ConnectError> {
    let mut connection = Connection::open(address).await?;
    let identity = connection.query("IDENTIFY_SYSTEM").await.unwrap();
    assert_eq!(identity[0][3].as_deref(), Some(address.database.as_str()), "{identity:?}");
    let channel = connection.query(CHANNEL).await.unwrap();
    Ok(channel[0][0].clone().unwrap())
}

async fn log_in_for_sql(address: &Address) -> Result<String, ConnectError> {
    let client = postgres::connect(address).await?;
    Ok(client.query_one(CHANNEL, &[]).await.unwrap().get(0))
}

/// Tries every URL with both kinds of connection, and reports all wrong rows together.
fn check(rows: &[(String, Expected)]) {
    let tries = rows.iter().map(async |(url, expected)| {
        let address = address(url);
        let replication = tokio::time::timeout(EVENT_MAX, log_in_for_replication(&address));
        let sql = tokio::time::timeout(EVENT_MAX, log_in_for_sql(&address));
        let (replication, sql) = tokio::join!(replication, sql);
        let got = [("replication", replication), ("SQL", sql)];
        let wrong = got.into_iter().filter(|(_, got)| match (got, expected) {
            (Ok(Ok(channel)), Ok(expected)) => channel != expected,
            (Ok(Err(error)), Err(parts)) => {
                let text = error.to_string();
                !parts.iter().all(|part| text.contains(part)) || reveals_password(&address, error)
            }
            _ => true,
        });
        wrong.map(|(way, got)| format!("{way} {url}: {got:?} instead of {expected:?}")).collect::<Vec<_>>()
    });
    // Many at once, since some wait for a time-out.
    let wrong = Runtime::new().unwrap().block_on(stream::iter(tries).buffered(16).concat());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Parses a URL, with an empty libpq environment.
fn address(url: &str) -> Address {
    Address::parse(url, &|_| None).unwrap()
}

fn reveals_password(address: &Address, error: &ConnectError) -> bool {
    let Some(password) = &address.password else { return false };
    let text = format!("{error} {error:?}");
    text.contains(password.expose_secret()) || text.contains(ENCODED) || text.contains(WRONG)
}

/// A PostgreSQL with a role for each login method, and a directory for certificates.
struct Scene {
    runtime: Runtime,
    postgres: Postgres,
    files: TempDir,
}

impl Scene {
    /// A server without TLS, with these host-based rules after the one for its administrator.
    fn start(rules: &str) -> Self {
        // Enough for the rows of all tests that run at once.
        let postgres = template::start(&["max_connections=300", "max_wal_senders=100"]);
        let scene = Self { runtime: Runtime::new().unwrap(), postgres, files: TempDir::new().unwrap() };
        scene.sql(&format!(
            "create role trusted login replication;
            create role encrypted login replication;
            create role certified login replication;
            create role clear login replication password '{PASSWORD}';
            set password_encryption = 'md5';
            create role hashed login replication password '{PASSWORD}';
            set password_encryption = 'scram-sha-256';
            create role scram login replication password '{PASSWORD}';
            create role reader login password '{PASSWORD}'"
        ));
        scene.write_for_server("pg_hba.conf", &format!("local all postgres trust\n{rules}"));
        scene.reload();
        scene
    }

    /// The same with TLS and this certificate. It requests client certificates signed by `clients`.
    fn start_with_tls(rules: &str, certificate: &Issued, clients: &Authority) -> Self {
        let scene = Self::start("");
        scene.write_for_server("clients.pem", &clients.pem);
        scene.write_for_server("pg_hba.conf", &format!("local all postgres trust\n{rules}"));
        scene.sql("alter system set ssl = on");
        scene.sql("alter system set ssl_ca_file = 'clients.pem'");
        scene.present(certificate);
        scene
    }

    /// A TCP URL of this server, with these credentials and parameters.
    fn url(&self, credentials: &str, parameters: &str) -> String {
        format!("postgres://{credentials}@localhost:{}/postgres?connect_timeout=10{parameters}", self.postgres.port())
    }

    /// The same over the Unix socket.
    fn socket_url(&self, credentials: &str, parameters: &str) -> String {
        let (directory, port) = (self.postgres.socket_directory().display(), self.postgres.port());
        format!("postgres://{credentials}@/postgres?host={directory}&port={port}{parameters}")
    }

    /// Runs SQL as the administrator on a new connection, which sees the reloaded settings.
    fn value(&self, sql: &str) -> String {
        self.runtime.block_on(async {
            let client = postgres::connect(&address(&self.socket_url("postgres", ""))).await.unwrap();
            let row = client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            row.get::<_, Option<String>>(0).unwrap_or_default()
        })
    }

    fn sql(&self, sql: &str) {
        self.runtime.block_on(async {
            let client = postgres::connect(&address(&self.socket_url("postgres", ""))).await.unwrap();
            client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        });
    }

    /// Writes into the data directory with the permissions that the server requires: readable by
    /// its user only.
    fn write_for_server(&self, name: &str, text: &str) {
        let file = self.postgres.data_directory().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let owner = std::fs::metadata(self.postgres.data_directory()).unwrap();
        chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }

    /// Makes the server reload its files, and waits until new sessions use them.
    fn reload(&self) {
        let loaded = "select pg_conf_load_time()::text";
        let before = self.value(loaded);
        self.sql("select pg_reload_conf()");
        wait_until(EVENT_MAX, "the server reads its files again", || self.value(loaded) != before);
        assert_eq!(self.value("select string_agg(error, '; ') from pg_hba_file_rules"), "");
    }

    /// Makes this the server's certificate.
    fn present(&self, certificate: &Issued) {
        self.write_for_server("server.key", &certificate.key);
        self.write_for_server("server.crt", &certificate.pem);
        self.reload();
    }

    /// Writes a file that a URL can name.
    fn file(&self, name: &str, text: &str) -> String {
        let file = self.files.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }
}

/// A certificate that can sign others.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key.
struct Issued {
    pem: String,
    key: String,
}

impl Authority {
    /// All have the same name; only their keys differ.
    fn new(algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(parameters, key), pem }
    }

    fn sign(&self, parameters: &CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        Issued { pem: parameters.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// For a client with this role.
    fn sign_client(&self, role: &str) -> Issued {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, role);
        self.sign(&parameters)
    }
}

/// For a server with these names.
fn server_certificate(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

fn own_names() -> CertificateParams {
    server_certificate(&["localhost", "127.0.0.1"])
}

fn self_signed(parameters: &CertificateParams) -> Issued {
    let key = KeyPair::generate().unwrap();
    Issued { pem: parameters.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

const PASSWORD_RULES: &str = "
    local all trusted              trust
    local all scram,reader         scram-sha-256
    host  all trusted   127.0.0.1/32 trust
    host  all missing   127.0.0.1/32 trust
    host  all clear     127.0.0.1/32 password
    host  all hashed    127.0.0.1/32 md5
    host  all scram     127.0.0.1/32 scram-sha-256
";

/// A server without TLS, shared by the tests that run at the same time.
fn without_tls() -> Arc<Scene> {
    static SHARED: Mutex<Weak<Scene>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let scene = Arc::new(Scene::start(PASSWORD_RULES));
        *shared = Arc::downgrade(&scene);
        scene
    })
}

#[test]
fn only_the_right_password_is_accepted_without_tls() {
    let scene = without_tls();
    let mut rows = vec![
        (scene.url("trusted", ""), PLAIN),
        (scene.url("trusted:ignored", ""), PLAIN),
        (scene.socket_url("trusted", ""), PLAIN),
        (scene.socket_url(&format!("scram:{ENCODED}"), ""), PLAIN),
        (scene.socket_url(&format!("scram:{WRONG}"), ""), Err(&["SQLSTATE 28P01", "check the password"])),
        (scene.url("missing", ""), Err(&["SQLSTATE 28000", "check the role"])),
        (scene.url("reader", ""), Err(&["SQLSTATE 28000", "pg_hba.conf allows it"])),
        (scene.url("trusted", "&dbname=elsewhere"), Err(&["SQLSTATE 3D000", "check the database name"])),
    ];
    for role in ["clear", "hashed", "scram"] {
        rows.extend([
            (scene.url(&format!("{role}:{ENCODED}"), ""), PLAIN),
            (scene.url(&format!("{role}:{ENCODED}"), "&sslmode=disable"), PLAIN),
            (
                scene.url(&format!("{role}:{WRONG}"), ""),
                Err(&["SQLSTATE 28P01", "check the password in source.url or PGPASSWORD"]),
            ),
            (scene.url(role, ""), Err(&["asks for a password", "source.url or PGPASSWORD"])),
        ]);
    }
    check(&rows);
}

#[test]
fn the_password_can_come_from_the_environment() {
    let scene = without_tls();
    let environment = |name: &str| (name == "PGPASSWORD").then(|| PASSWORD.to_owned());
    let address = Address::parse(&scene.url("scram", ""), &environment).unwrap();
    assert_eq!(scene.runtime.block_on(log_in_for_replication(&address)).unwrap(), "plain");
    assert_eq!(scene.runtime.block_on(log_in_for_sql(&address)).unwrap(), "plain");
}

#[test]
fn a_missing_replication_privilege_is_named() {
    let scene = without_tls();
    let address = address(&scene.socket_url(&format!("reader:{ENCODED}"), ""));
    let error = scene.runtime.block_on(log_in_for_replication(&address)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("SQLSTATE 42501") && text.contains("ALTER ROLE name REPLICATION"), "{text}");
    assert!(!reveals_password(&address, &error), "{error:?}");
}

#[test]
fn without_tls_only_modes_that_require_it_fail() {
    let scene = without_tls();
    let root = scene.file("root.pem", &Authority::new(&PKCS_ECDSA_P256_SHA256).pem);
    let no_tls: Expected = Err(&["does not offer TLS", "set ssl = on"]);
    check(&[
        (scene.url("trusted", "&sslmode=disable"), PLAIN),
        (scene.url("trusted", "&sslmode=disable&sslrootcert=/nowhere"), PLAIN),
        (scene.url("trusted", "&sslmode=prefer"), PLAIN),
        (scene.url("trusted", &format!("&sslmode=prefer&sslrootcert={root}")), PLAIN),
        (scene.url("trusted", "&sslmode=require"), no_tls),
        (scene.url("trusted", &format!("&sslmode=verify-ca&sslrootcert={root}")), no_tls),
        (scene.url("trusted", &format!("&sslmode=verify-full&sslrootcert={root}")), no_tls),
        // As in libpq, a Unix socket is never encrypted and need not be.
        (scene.socket_url("trusted", "&sslmode=require"), PLAIN),
        (scene.socket_url("trusted", &format!("&sslmode=verify-full&sslrootcert={root}")), PLAIN),
    ]);
}

#[test]
fn channel_binding_requires_tls() {
    let scene = without_tls();
    let unbound: Expected = Err(&["cannot log in", "channel_binding=require"]);
    let required = "&sslmode=disable&channel_binding=require";
    check(&[
        (scene.url(&format!("scram:{ENCODED}"), required), unbound),
        (scene.url(&format!("scram:{ENCODED}"), "&channel_binding=require"), unbound),
        // An attacker in the middle could request these instead.
        (scene.url(&format!("hashed:{ENCODED}"), required), unbound),
        (scene.url(&format!("clear:{ENCODED}"), required), unbound),
        (scene.url("trusted", required), unbound),
        (scene.url(&format!("scram:{ENCODED}"), "&channel_binding=prefer"), PLAIN),
        (scene.url(&format!("scram:{ENCODED}"), "&channel_binding=disable"), PLAIN),
    ]);
}

#[test]
fn each_sslmode_accepts_the_certificates_that_libpq_accepts() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let stranger = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let rules = "local all trusted trust\nhost all trusted 127.0.0.1/32 trust";
    let scene = Scene::start_with_tls(rules, &authority.sign(&own_names()), &authority);
    let right = scene.file("right.pem", &authority.pem);
    let wrong = scene.file("wrong.pem", &stranger.pem);
    let both = scene.file("both.pem", &format!("{}{}", stranger.pem, authority.pem));
    let empty = scene.file("empty.pem", "");
    let url = |mode: &str, root: &str| scene.url("trusted", &format!("&sslmode={mode}&sslrootcert={root}"));
    let untrusted: Expected = Err(&["TLS with PostgreSQL failed", "invalid peer certificate"]);
    let misnamed: Expected = Err(&["TLS with PostgreSQL failed", "not valid for name"]);
    let rootless: Expected = Err(&["TLS with PostgreSQL failed", "sslrootcert=FILE", "sslrootcert=system"]);

    check(&[
        (url("disable", ""), PLAIN),
        (url("prefer", ""), TLS),
        (scene.url("trusted", ""), TLS),
        (url("require", ""), TLS),
        (url("verify-ca", ""), rootless),
        (url("verify-full", ""), rootless),
        (url("disable", &right), PLAIN),
        (url("prefer", &right), TLS),
        (url("require", &right), TLS),
        (url("verify-ca", &right), TLS),
        (url("verify-full", &right), TLS),
        (url("verify-full", &both), TLS),
        (url("verify-full", &right).replace("localhost", "127.0.0.1"), TLS),
        (url("disable", &wrong), PLAIN),
        (url("prefer", &wrong), PLAIN),
        (url("require", &wrong), untrusted),
        (url("verify-ca", &wrong), untrusted),
        (url("verify-full", &wrong), untrusted),
        (url("verify-full", "system"), Err(&["TLS with PostgreSQL failed"])),
        (url("verify-full", "/nowhere/root.pem"), Err(&["cannot read /nowhere/root.pem"])),
        (url("verify-full", &empty), Err(&["no usable certificate"])),
        (scene.socket_url("trusted", &format!("&sslmode=verify-full&sslrootcert={wrong}")), PLAIN),
    ]);

    scene.present(&authority.sign(&server_certificate(&["elsewhere.example", "192.0.2.1"])));
    check(&[
        (url("prefer", &right), TLS),
        (url("require", &right), TLS),
        (url("verify-ca", &right), TLS),
        (url("verify-ca", &wrong), untrusted),
        (url("verify-full", &right), misnamed),
        (url("verify-full", &right).replace("localhost", "127.0.0.1"), misnamed),
        (url("verify-full", &wrong), untrusted),
    ]);

    let mut expired = own_names();
    expired.not_after = date_time_ymd(2020, 1, 1);
    scene.present(&authority.sign(&expired));
    check(&[(url("require", ""), TLS), (url("verify-ca", &right), untrusted), (url("verify-full", &right), untrusted)]);
}

#[test]
fn a_self_signed_certificate_is_its_own_root() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let mut parameters = own_names();
    let first = self_signed(&parameters);
    let scene = Scene::start_with_tls("host all trusted 127.0.0.1/32 trust", &first, &authority);
    let url = |mode: &str, root: &str| scene.url("trusted", &format!("&sslmode={mode}&sslrootcert={root}"));
    let untrusted: Expected = Err(&["TLS with PostgreSQL failed", "invalid peer certificate"]);

    // `openssl req -x509` marks it as an authority; other programs do not.
    for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        parameters.is_ca = is_ca;
        let certificate = self_signed(&parameters);
        scene.present(&certificate);
        let itself = scene.file("itself.pem", &certificate.pem);
        let other = scene.file("other.pem", &self_signed(&parameters).pem);
        check(&[
            (url("require", &itself), TLS),
            (url("verify-ca", &itself), TLS),
            (url("verify-full", &itself), TLS),
            (url("verify-full", &itself).replace("localhost", "127.0.0.1"), TLS),
            (url("require", &other), untrusted),
            (url("verify-ca", &other), untrusted),
            (url("verify-full", &other), untrusted),
        ]);

        let mut elsewhere = server_certificate(&["elsewhere.example"]);
        elsewhere.is_ca = parameters.is_ca;
        let certificate = self_signed(&elsewhere);
        scene.present(&certificate);
        let itself = scene.file("itself.pem", &certificate.pem);
        check(&[(url("verify-ca", &itself), TLS), (url("verify-full", &itself), untrusted)]);

        let mut expired = parameters.clone();
        expired.not_after = date_time_ymd(2020, 1, 1);
        let certificate = self_signed(&expired);
        scene.present(&certificate);
        let itself = scene.file("itself.pem", &certificate.pem);
        check(&[(url("verify-ca", &itself), untrusted), (url("verify-full", &itself), untrusted)]);
    }
}

#[test]
fn host_based_rules_apply_over_tls() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let stranger = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let rules = "
        hostssl all encrypted 127.0.0.1/32 trust
        hostnossl all trusted 127.0.0.1/32 trust
        hostssl all certified 127.0.0.1/32 cert
        hostssl all clear     127.0.0.1/32 password
        hostssl all hashed    127.0.0.1/32 md5
        hostssl all scram     127.0.0.1/32 scram-sha-256
    ";
    let scene = Scene::start_with_tls(rules, &authority.sign(&own_names()), &authority);
    let root = scene.file("root.pem", &authority.pem);
    let client = |name: &str, issued: &Issued| {
        let certificate = scene.file(&format!("{name}.crt"), &issued.pem);
        let key = scene.file(&format!("{name}.key"), &issued.key);
        format!("&sslmode=verify-full&sslrootcert={root}&sslcert={certificate}&sslkey={key}")
    };
    let own = client("own", &authority.sign_client("certified"));
    let of_another_role = client("another", &authority.sign_client("encrypted"));
    let of_a_stranger = client("stranger", &stranger.sign_client("certified"));
    let without_key = own.replace("own.key", "nowhere.key");
    let with_a_strange_key = own.replace("own.key", "stranger.key");
    let refused: Expected = Err(&["SQLSTATE 28000", "pg_hba.conf"]);

    let mut rows = vec![
        (scene.url("encrypted", "&sslmode=disable"), refused),
        (scene.url("encrypted", "&sslmode=prefer"), TLS),
        (scene.url("encrypted", "&sslmode=require"), TLS),
        // As in libpq, `prefer` falls back to the other kind of connection.
        (scene.url("trusted", "&sslmode=prefer"), PLAIN),
        (scene.url("trusted", "&sslmode=require"), refused),
        (scene.url("certified", "&sslmode=require"), Err(&["SQLSTATE 28000", "client certificate"])),
        (scene.url("certified", &own), TLS),
        (scene.url("certified", &of_another_role), Err(&["SQLSTATE 28000", "certificate authentication failed"])),
        (scene.url("certified", &of_a_stranger), Err(&["TLS with PostgreSQL failed"])),
        (scene.url("certified", &without_key), Err(&["TLS with PostgreSQL failed", "cannot read", "nowhere.key"])),
        (scene.url("certified", &with_a_strange_key), Err(&["TLS with PostgreSQL failed"])),
    ];
    for role in ["clear", "hashed", "scram"] {
        rows.extend([
            (scene.url(&format!("{role}:{ENCODED}"), "&sslmode=require"), TLS),
            (scene.url(&format!("{role}:{ENCODED}"), "&sslmode=require&channel_binding=disable"), TLS),
            (scene.url(&format!("{role}:{WRONG}"), "&sslmode=require"), Err(&["SQLSTATE 28P01", "check the password"])),
            (scene.url(role, "&sslmode=require"), Err(&["asks for a password", "source.url or PGPASSWORD"])),
            (scene.url(&format!("{role}:{ENCODED}"), "&sslmode=disable"), refused),
        ]);
    }
    check(&rows);
}

#[test]
fn scram_is_bound_for_every_signature_algorithm_with_a_hash() {
    let clients = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let rules = "
        host all trusted 127.0.0.1/32 trust
        host all clear   127.0.0.1/32 password
        host all hashed  127.0.0.1/32 md5
        host all scram   127.0.0.1/32 scram-sha-256
    ";
    let scene = Scene::start_with_tls(rules, &clients.sign(&own_names()), &clients);
    let unbound: Expected = Err(&["cannot log in", "channel_binding=require"]);
    let required = "&sslmode=require&channel_binding=require";
    let scram = format!("scram:{ENCODED}");

    // The hash for the binding follows the signature's: SHA-256, then SHA-384. "Required" succeeds
    // only with a binding.
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
        scene.present(&Authority::new(algorithm).sign(&own_names()));
        check(&[
            (scene.url(&scram, required), TLS),
            (scene.url(&scram, "&channel_binding=require"), TLS),
            (scene.url(&scram, "&channel_binding=prefer"), TLS),
            (scene.url(&scram, "&channel_binding=disable"), TLS),
            (scene.url(&format!("scram:{WRONG}"), required), Err(&["SQLSTATE 28P01", "check the password"])),
            (scene.url("scram", required), Err(&["asks for a password"])),
        ]);
    }
    // An attacker in the middle could request these instead.
    check(&[
        (scene.url(&format!("hashed:{ENCODED}"), required), unbound),
        (scene.url(&format!("clear:{ENCODED}"), required), unbound),
        (scene.url("trusted", required), unbound),
        (scene.url(&scram, "&sslmode=disable&channel_binding=require"), unbound),
    ]);
    // Ed25519 has no hash for the binding.
    scene.present(&Authority::new(&PKCS_ED25519).sign(&own_names()));
    check(&[(scene.url(&scram, required), unbound), (scene.url(&scram, "&sslmode=require"), TLS)]);
}

/// A server that does this on every connection.
fn misbehaving(answer: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let answer = answer.clone();
            // An error only means that the client has disconnected, as expected.
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

/// One packet without a tag: a start-up packet or a TLS request.
fn read_packet(stream: &mut TcpStream) -> io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut rest)
}

/// A server that answers with these bytes.
fn saying(bytes: impl Into<Vec<u8>>) -> u16 {
    let bytes = bytes.into();
    misbehaving(move |mut stream| {
        read_packet(&mut stream)?;
        stream.write_all(&bytes)?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    })
}

/// A message: its tag, its length and its body.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], length.to_be_bytes().as_slice(), body].concat()
}

/// A URL with a password, which no error may show.
fn url_at(port: u16, mode: &str) -> String {
    format!("postgres://scram:{ENCODED}@127.0.0.1:{port}/postgres?sslmode={mode}&connect_timeout=1")
}

#[test]
fn a_server_that_does_not_answer_times_out() {
    let closes = misbehaving(|_| Ok(()));
    let closes_later = misbehaving(|mut stream| read_packet(&mut stream));
    let silent = saying("");
    let talks = misbehaving(|mut stream| {
        read_packet(&mut stream)?;
        loop {
            stream.write_all(&message(b'N', b"SNOTICE\0Mand another thing\0\0"))?;
        }
    });
    let unreachable: Expected = Err(&["cannot reach PostgreSQL", "127.0.0.1:"]);
    let mut rows = Vec::new();
    for port in [closes, closes_later, silent, talks] {
        rows.push((url_at(port, "disable"), unreachable));
    }
    for port in [closes, closes_later, silent, saying("S")] {
        rows.push((url_at(port, "prefer"), unreachable));
        rows.push((url_at(port, "require"), unreachable));
    }
    check(&rows);
}

#[test]
fn another_protocol_is_distinguished_from_an_unavailable_server() {
    let answers = [
        b"HTTP/1.1 400 Bad Request\r\nConnection: keep-alive\r\n\r\n".to_vec(),
        b"-ERR unknown command\r\n".to_vec(),
        b"R\x7f\xff\xff\xff".to_vec(),
        b"R\xff\xff\xff\xff".to_vec(),
        b"R\x00\x00\x00\x00".to_vec(),
        vec![0; 64],
        vec![0xff; 64],
        message(b'R', b""),
        message(b'R', &[0, 0, 0, 5, 1]),
        message(b'S', b"no end"),
        message(b'~', b"no such tag"),
    ];
    let rows: Vec<_> = answers.iter().map(|bytes| (url_at(saying(bytes.as_slice()), "disable"), Err(SOME))).collect();
    check(&rows);
    let runtime = Runtime::new().unwrap();
    let wrong = answers.iter().zip(&rows).filter_map(|(bytes, (url, _))| {
        let error = runtime.block_on(log_in_for_replication(&address(url))).unwrap_err();
        let met = matches!(error, ConnectError::Protocol(_));
        (!met).then(|| format!("{}: {error:?}", bytes.escape_ascii()))
    });
    assert_eq!(wrong.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn an_invalid_answer_to_a_tls_request_is_an_error() {
    check(&[
        (url_at(saying("HTTP/1.1 400 Bad Request\r\n\r\n"), "require"), Err(SOME)),
        (url_at(saying("SHTTP/1.1 400 Bad Request\r\n\r\n"), "require"), Err(&["TLS with PostgreSQL failed"])),
        (url_at(saying([b'S', 21, 3, 3, 0, 2, 2, 40]), "require"), Err(&["TLS with PostgreSQL failed"])),
    ]);
}

#[test]
fn unsupported_authentication_methods_are_named() {
    let unsupported: Expected = Err(&["cannot log in"]);
    let kerberos = [0, 0, 0, 7];
    check(&[
        (url_at(saying(message(b'R', &kerberos)), "disable"), unsupported),
        (url_at(saying(message(b'R', b"\0\0\0\x0a\0")), "disable"), unsupported),
        (url_at(saying(message(b'R', b"\0\0\0\x0aSCRAM-SHA-512\0\0")), "disable"), unsupported),
    ]);
}

/// The server requests a clear-text password although the client requires a bound SCRAM; it must
/// not get one.
#[test]
fn a_required_channel_binding_cannot_be_downgraded() {
    let (sender, told) = std::sync::mpsc::channel();
    let port = misbehaving(move |mut stream| {
        read_packet(&mut stream)?;
        stream.write_all(&message(b'R', &[0, 0, 0, 3]))?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        sender.send(String::from_utf8_lossy(&answer).into_owned()).map_err(io::Error::other)
    });
    let address = address(&format!("{}&channel_binding=require", url_at(port, "disable")));
    let runtime = Runtime::new().unwrap();
    assert!(runtime.block_on(log_in_for_sql(&address)).is_err());
    assert_eq!(told.recv_timeout(EVENT_MAX).unwrap(), "");
    assert!(runtime.block_on(log_in_for_replication(&address)).is_err());
    assert_eq!(told.recv_timeout(EVENT_MAX).unwrap(), "");
}

#[test]
fn a_connection_pooler_is_recognized() {
    let refusal = "SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
    let port = saying(message(b'E', refusal.as_bytes()));
    check(&[(
        url_at(port, "disable"),
        Err(&["SQLSTATE 08P01", "connection pooler", "set source.url to PostgreSQL itself"]),
    )]);
}
