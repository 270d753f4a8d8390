//! TLS to PostgreSQL, with `sslmode` as in libpq.
//!
//! Owns certificate files, verification and the channel-binding hash. It must not know sockets or
//! messages. Invariant: `verify-ca` and `verify-full` accept only certificates signed by a given
//! root.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use tokio_rustls::TlsConnector;
use x509_cert::der::Decode as _;

use super::address::{Address, SslMode};
use super::error::ConnectError;

/// A connector with the TLS settings of this address. Reads certificate files.
pub(super) fn connector(address: &Address) -> Result<TlsConnector, ConnectError> {
    Ok(TlsConnector::from(Arc::new(client_config(address)?)))
}

fn client_config(address: &Address) -> Result<ClientConfig, ConnectError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: &dyn std::fmt::Display| ConnectError::Tls(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(address, provider)?);
    match &address.ssl_client {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = read_certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| failed(&error))
        }
    }
}

/// The hash of the server's certificate that SCRAM binds to (`tls-server-end-point`, RFC 5929): by
/// the hash function of the certificate's signature, but SHA-256 instead of SHA-1.
pub(super) fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use x509_cert::der::oid::db::rfc5912 as oid;
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    match parsed.signature_algorithm.oid {
        oid::SHA_1_WITH_RSA_ENCRYPTION | oid::SHA_256_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_256 => {
            Some(Sha256::digest(certificate).to_vec())
        }
        oid::SHA_384_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_384 => Some(Sha384::digest(certificate).to_vec()),
        oid::SHA_512_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_512 => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

fn verifier(address: &Address, provider: Arc<CryptoProvider>) -> Result<Arc<Verifier>, ConnectError> {
    let check = match (address.ssl_mode, &address.ssl_root_cert) {
        (SslMode::Disable | SslMode::Prefer | SslMode::Require, None) => Check::Nothing,
        (SslMode::VerifyFull, _) => Check::ChainAndName,
        // As in libpq, `require` with a root certificate also verifies the chain.
        _ => Check::Chain,
    };
    let mut roots = Vec::new();
    if check != Check::Nothing {
        let Some(file) = &address.ssl_root_cert else {
            return Err(ConnectError::Tls(
                "sslmode verify-ca and verify-full need sslrootcert=FILE (or sslrootcert=system)".to_owned(),
            ));
        };
        roots = match file.as_os_str() == "system" {
            true => rustls_native_certs::load_native_certs().certs,
            false => read_certificates(file)?,
        };
    }
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let chain = match check {
        Check::Nothing => None,
        Check::Chain | Check::ChainAndName => Some(
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
                .build()
                .map_err(|error| ConnectError::Tls(format!("sslrootcert holds no usable certificate: {error}")))?,
        ),
    };
    Ok(Arc::new(Verifier { check, chain, roots, provider }))
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(|error| unreadable(file, &error))
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::Tls(format!("cannot read {}: {error}", file.display()))
}

fn out_of_date(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        error,
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    chain: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let verdict = chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
                if self.check == Check::Chain =>
            {
                Ok(ServerCertVerified::assertion())
            }
            // A self-signed certificate that is itself a trusted root: libpq accepts it, webpki
            // does not. Its dates must still be valid.
            Err(error)
                if !out_of_date(&error) && self.roots.iter().any(|root| root.as_ref() == end_entity.as_ref()) =>
            {
                match self.check {
                    Check::ChainAndName => {
                        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
                        rustls::client::verify_server_name(&parsed, server_name)?;
                        tracing::debug!(%error, "the server's certificate is itself a trusted root");
                        Ok(ServerCertVerified::assertion())
                    }
                    Check::Nothing | Check::Chain => Ok(ServerCertVerified::assertion()),
                }
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
