#!/bin/sh
# LocalStack runs this inside its container when S3 is ready.
set -eu
awslocal s3api head-bucket --bucket kvpersist 2>/dev/null || awslocal s3api create-bucket --bucket kvpersist
