#!/bin/sh
# Runs before nginx starts (docker-compose.yml) and writes the parts of its configuration that depend on the
# environment, which nginx.conf includes: the names it answers to, the load balancers it believes, and TLS.
set -eu
out=/tmp/nginx
mkdir -p "$out"

# words NAME VALUE: the words of VALUE, which commas separate, one a line; stops at what could end a directive.
words() {
  printf '%s\n' "$2" | tr -s ', ' '\n' | while IFS= read -r word; do
    case $word in
      '') ;;
      *[!A-Za-z0-9.:/_-]*)
        echo "$1 is malformed: \"$word\" is neither a name nor an address." >&2
        exit 1
        ;;
      *) echo "$word" ;;
    esac
  done
}

hosts=$(words ALLOWED_HOSTS "${ALLOWED_HOSTS:-}")
[ -n "$hosts" ] || { echo 'ALLOWED_HOSTS is empty: nginx would answer to no name.' >&2; exit 1; }
{ echo server_name; echo "$hosts"; echo ';'; } >"$out/names.conf"

proxies=$(words REAL_IP_FROM "${REAL_IP_FROM:-}")
for proxy in $proxies; do echo "set_real_ip_from $proxy;"; done >"$out/real-ip.conf"
for proxy in $proxies; do echo "$proxy 1;"; done >"$out/balancers.conf"

if [ -s /etc/nginx/tls/tls.crt ] && [ -s /etc/nginx/tls/tls.key ]; then
  cat >"$out/tls.conf" <<'CONF'
listen 8443 ssl;
http2 on;
ssl_certificate /etc/nginx/tls/tls.crt;
ssl_certificate_key /etc/nginx/tls/tls.key;
CONF
  printf 'listen 8443 ssl default_server;\nssl_reject_handshake on;\n' >"$out/tls-unknown.conf"
else
  : >"$out/tls.conf"
  : >"$out/tls-unknown.conf"
fi
