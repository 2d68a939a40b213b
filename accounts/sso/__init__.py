"""Single sign-on by OpenID Connect, on top of allauth's provider. Imported only if OIDC_ISSUER is set."""
