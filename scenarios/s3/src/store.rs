//! s3s-fs, with two things done otherwise: a bucket that is not there is no bucket, and objects are read whole.
//!
//! It makes the folder of a bucket it is to write to, and finds no object in one that is not there: a wrong bucket's
//! name would never be noticed here.
//!
//! It streams an object by 4 KiB, and each of these pieces is handed to a thread and back: more work for the machine
//! than all the rest of a small migration. Longshore's objects are a few MiB, so a read each will do; larger ones and
//! parts of objects are streamed as ever.

use async_trait::async_trait;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CreateBucketInput,
    CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput,
    DeleteBucketOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
    DeleteObjectsOutput, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListBucketsInput, ListBucketsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
    ListObjectsV2Output, ListPartsInput, ListPartsOutput, PutObjectInput, PutObjectOutput,
    StreamingBlob, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use std::path::PathBuf;

/// Twice a pack, so that every object of Longshore's is read at once and no other fills the memory.
const WHOLE_BYTES_MAX: i64 = 16 << 20;

/// The folder and the store over it.
pub struct Store {
    /// The folder of the buckets.
    pub root: PathBuf,
    /// s3s-fs.
    pub files: FileSystem,
}

/// Methods that are s3s-fs' own.
macro_rules! as_they_are {
    ($($method:ident: $input:ty => $output:ty;)*) => {
        #[async_trait]
        impl S3 for Store {
            async fn get_object(
                &self,
                request: S3Request<GetObjectInput>,
            ) -> S3Result<S3Response<GetObjectOutput>> {
                self.whole_object(request).await
            }

            async fn put_object(
                &self,
                request: S3Request<PutObjectInput>,
            ) -> S3Result<S3Response<PutObjectOutput>> {
                self.check_bucket(&request.input.bucket)?;
                self.files.put_object(request).await
            }
            $(
                async fn $method(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                    self.files.$method(request).await
                }
            )*
        }
    };
}

as_they_are! {
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput;
    complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput;
    copy_object: CopyObjectInput => CopyObjectOutput;
    create_bucket: CreateBucketInput => CreateBucketOutput;
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput;
    delete_bucket: DeleteBucketInput => DeleteBucketOutput;
    delete_object: DeleteObjectInput => DeleteObjectOutput;
    delete_objects: DeleteObjectsInput => DeleteObjectsOutput;
    get_bucket_location: GetBucketLocationInput => GetBucketLocationOutput;
    head_bucket: HeadBucketInput => HeadBucketOutput;
    head_object: HeadObjectInput => HeadObjectOutput;
    list_buckets: ListBucketsInput => ListBucketsOutput;
    list_objects: ListObjectsInput => ListObjectsOutput;
    list_objects_v2: ListObjectsV2Input => ListObjectsV2Output;
    list_parts: ListPartsInput => ListPartsOutput;
    upload_part: UploadPartInput => UploadPartOutput;
    upload_part_copy: UploadPartCopyInput => UploadPartCopyOutput;
}

impl Store {
    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if self.root.join(bucket).is_dir() {
            Ok(())
        } else {
            Err(s3_error!(NoSuchBucket))
        }
    }

    async fn whole_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.check_bucket(&request.input.bucket)?;
        let is_part = request.input.range.is_some();
        let path = self
            .root
            .join(&request.input.bucket)
            .join(&request.input.key);
        // It has checked the key and found the file; its stream costs nothing unless it is read.
        let mut answer = self.files.get_object(request).await?;
        let length = answer.output.content_length;
        if is_part || length.is_none_or(|length| length > WHOLE_BYTES_MAX) {
            return Ok(answer);
        }
        // Overwritten meanwhile by an object of another length: the stream is of the file that was found.
        if let Ok(bytes) = tokio::fs::read(path).await
            && i64::try_from(bytes.len()).ok() == length
        {
            answer.output.body = Some(StreamingBlob::from(Body::from(bytes)));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What one GET gives, and in how many pieces.
    async fn get(key: &str, range: Option<s3s::dto::Range>) -> (Vec<u8>, usize) {
        use futures::StreamExt;
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bucket")).unwrap();
        fs::write(folder.path().join("bucket/object"), vec![7; 100_000]).unwrap();
        let store = Store {
            root: folder.path().to_owned(),
            files: FileSystem::new(folder.path()).unwrap(),
        };
        let input = GetObjectInput {
            bucket: "bucket".into(),
            key: key.into(),
            range,
            ..GetObjectInput::default()
        };
        let answer = store.get_object(request(input)).await.unwrap();
        let mut body = answer.output.body.unwrap();
        let (mut bytes, mut pieces) = (Vec::new(), 0);
        while let Some(piece) = body.next().await {
            bytes.extend(piece.unwrap());
            pieces += 1;
        }
        (bytes, pieces)
    }

    fn request<T>(input: T) -> S3Request<T> {
        S3Request {
            input,
            method: "GET".parse().unwrap(),
            uri: "/".parse().unwrap(),
            headers: Default::default(),
            extensions: Default::default(),
            credentials: None,
            region: None,
            service: None,
            trailing_headers: None,
        }
    }

    #[tokio::test]
    async fn nothing_is_put_into_a_bucket_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store {
            root: folder.path().to_owned(),
            files: FileSystem::new(folder.path()).unwrap(),
        };
        let input = PutObjectInput {
            bucket: "other".into(),
            key: "object".into(),
            ..PutObjectInput::default()
        };
        let error = store.put_object(request(input)).await.unwrap_err();
        assert_eq!(error.code().as_str(), "NoSuchBucket");
        assert!(!folder.path().join("other").exists());
    }

    #[tokio::test]
    async fn an_object_comes_whole_and_in_one_piece() {
        let (bytes, pieces) = get("object", None).await;
        assert_eq!((bytes, pieces), (vec![7; 100_000], 1));
    }

    #[tokio::test]
    async fn a_part_of_an_object_is_that_part() {
        let range = s3s::dto::Range::Int {
            first: 10,
            last: Some(19),
        };
        let (bytes, _) = get("object", Some(range)).await;
        assert_eq!(bytes.len(), 10);
    }
}
