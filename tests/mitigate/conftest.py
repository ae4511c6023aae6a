"""What tests of mitigations share: a bucket."""

from tests.support.s3 import outage, s3_endpoint, s3_url

__all__ = ["outage", "s3_endpoint", "s3_url"]
