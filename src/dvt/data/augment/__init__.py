"""What training does to images: of one image (`basic`, `policies`), of a batch (`mixing`), all of it (`recipe`)."""
