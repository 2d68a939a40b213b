# How ./run image builds the image: https://docs.docker.com/build/bake/reference/
# Variables come from the environment.

variable "NAME" {
  default = "backstagetest1:latest"
}

# What the image says of itself, in /health/ and in its labels.
variable "APP_VERSION" {
  default = "dev"
}
variable "APP_COMMIT" {
  default = "unknown"
}
variable "APP_CREATED" {
  default = ""
}

# The cache stays in the registry beside the image, as NAME:cache.
function "cache" {
  params = [name]
  result = "type=registry,ref=${regex_replace(name, ":[^:/]+$", "")}:cache"
}

target "image" {
  context = "."
  tags    = [NAME]
  args = {
    APP_VERSION = APP_VERSION
    APP_COMMIT  = APP_COMMIT
    APP_CREATED = APP_CREATED
  }
}

# With what it is made of (SBOM) and how it was made (provenance), to the registry.
target "release" {
  inherits   = ["image"]
  attest     = ["type=sbom", "type=provenance,mode=max"]
  cache-from = [cache(NAME)]
  cache-to   = ["${cache(NAME)},mode=max"]
  output     = ["type=registry"]
}
