"""An OpenID provider, oidc-provider-mock, as a program: `python -m tests.support.openid_provider PORT`.

It lies for people whose subject names a lie (LIES), which a client has to notice. A person's claims are set with PUT
/users/SUBJECT. Whoever posts to the authorization form is that person, without a password.
"""

import os
import sys
import time
from typing import Any

LIES: dict[str, dict[str, Any]] = {
    "wrong-nonce": {"nonce": "of-another-sign-in"},
    "wrong-audience": {"aud": ["another-client"]},
    "wrong-party": {"aud": ["app", "another-client"], "azp": "another-client"},
    "wrong-issuer": {"iss": "https://elsewhere.example.com"},
    "expired": {"exp": int(time.time()) - 3600},
    "somebody-else": {"sub": "root"},
    "unsigned": {},
    "wrong-key": {},
}


def serve(port: int) -> None:
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # http on this machine
    import werkzeug.serving
    from authlib.oidc.core import OpenIDCode
    from joserfc import jwk, jwt
    from oidc_provider_mock import _app

    honest = OpenIDCode.encode_id_token

    def encode(self: Any, token: Any, request: Any) -> Any:
        """Returns the ID token: the honest one, or that of the lie that the person's subject names."""
        sub, said = request.user.sub, honest(self, token, request)
        if sub not in LIES:
            return said
        own = jwk.import_key(_app.storage.jwk.as_dict(is_private=True), "RSA")
        decoded = jwt.decode(said, own)
        header, claims = decoded.header, decoded.claims | LIES[sub]
        if sub == "unsigned":
            return jwt.encode({"alg": "none"}, claims, jwk.OctKey.generate_key(), algorithms=["none"])
        return jwt.encode(
            header, claims, jwk.RSAKey.generate_key() if sub == "wrong-key" else own, algorithms=["RS256"]
        )

    OpenIDCode.encode_id_token = encode
    werkzeug.serving.run_simple("127.0.0.1", port, _app.app(), threaded=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
