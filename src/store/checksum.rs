//! The source's own checksums, computed over what is read back from disk.

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::core::attributes::Checksum;

/// Sums bytes up, in order, as a checksum does.
#[derive(Clone)]
pub enum Summer {
    /// SHA-256.
    Sha256(Sha256),
    /// MD5.
    Md5(Md5),
    /// CRC-32C.
    Crc32c(u32),
    /// BLAKE3; its state is large.
    Blake3(Box<blake3::Hasher>),
    /// CRC-64/NVME.
    Crc64Nvme(crc64fast_nvme::Digest),
    /// CRC-32.
    Crc32(crc32fast::Hasher),
}

impl std::fmt::Debug for Summer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Summer").finish_non_exhaustive()
    }
}

impl Summer {
    /// One that gives the same kind of checksum as `checksum`.
    pub fn like(checksum: &Checksum) -> Self {
        match checksum {
            Checksum::Sha256(_) => Summer::Sha256(Sha256::new()),
            Checksum::Md5(_) => Summer::Md5(Md5::new()),
            Checksum::Crc32c(_) => Summer::Crc32c(0),
            Checksum::Blake3(_) => Summer::Blake3(Box::default()),
            Checksum::Crc64Nvme(_) => Summer::Crc64Nvme(crc64fast_nvme::Digest::new()),
            Checksum::Crc32(_) => Summer::Crc32(crc32fast::Hasher::new()),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Summer::Sha256(hasher) => hasher.update(bytes),
            Summer::Md5(hasher) => hasher.update(bytes),
            Summer::Crc32c(sum) => *sum = crc32c::crc32c_append(*sum, bytes),
            Summer::Blake3(hasher) => drop(hasher.update(bytes)),
            Summer::Crc64Nvme(digest) => digest.write(bytes),
            Summer::Crc32(hasher) => hasher.update(bytes),
        }
    }

    /// The checksum of all bytes taken.
    pub fn finish(self) -> Checksum {
        match self {
            Summer::Sha256(hasher) => Checksum::Sha256(hasher.finalize().to_vec()),
            Summer::Md5(hasher) => Checksum::Md5(hasher.finalize().to_vec()),
            Summer::Crc32c(sum) => Checksum::Crc32c(sum.to_be_bytes().to_vec()),
            Summer::Blake3(hasher) => Checksum::Blake3(hasher.finalize().as_bytes().to_vec()),
            Summer::Crc64Nvme(digest) => Checksum::Crc64Nvme(digest.sum64().to_be_bytes().to_vec()),
            Summer::Crc32(hasher) => Checksum::Crc32(hasher.finalize().to_be_bytes().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 1321 A.5, FIPS 180-2 B.1, RFC 3720 B.4.
    #[test]
    fn the_checksums_of_known_bytes_are_the_known_ones() {
        let known: [(&[u8], Checksum, &str); 6] = [
            (b"abc", Checksum::Md5(vec![]), "md5 900150983cd24fb0d6963f7d28e17f72"),
            (
                b"abc",
                Checksum::Sha256(vec![]),
                "sha-256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (&[0; 32], Checksum::Crc32c(vec![]), "crc32c 8a9136aa"),
            (
                b"abc",
                Checksum::Blake3(vec![]),
                "blake3 6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            ),
            // The check values of the CRC catalogue.
            (b"123456789", Checksum::Crc64Nvme(vec![]), "crc64nvme ae8b14860a799888"),
            (b"123456789", Checksum::Crc32(vec![]), "crc32 cbf43926"),
        ];
        for (bytes, kind, expected) in known {
            let mut summer = Summer::like(&kind);
            bytes.chunks(2).for_each(|piece| summer.update(piece));
            assert_eq!(summer.finish().to_string(), expected);
        }
    }
}
