//! Calls of methods by their bytes, and which methods there are, whatever their messages.

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Sends bytes as they are.
#[derive(Clone, Copy)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What descriptors tell of services: as much as the tests ask.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Descriptors {
    #[prost(message, repeated, tag = "1")]
    pub(crate) files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct File {
    #[prost(string, tag = "2")]
    pub(crate) package: String,
    #[prost(message, repeated, tag = "6")]
    pub(crate) services: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Service {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) methods: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Method {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(bool, tag = "5")]
    pub(crate) client_streaming: bool,
}
