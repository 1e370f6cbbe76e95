#!/bin/sh
# Makes ./secrets, once: what the verifiers share, Redis' password, a certificate for this machine, the first API key.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets/verifier secrets/nginx
[ -f secrets/verifier/secret ] || openssl rand -hex 32 > secrets/verifier/secret
[ -f secrets/verifier/redis-password ] || openssl rand -hex 24 > secrets/verifier/redis-password
[ -f secrets/nginx/server.key ] || openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout secrets/nginx/server.key -out secrets/nginx/server.pem 2>/dev/null
if [ ! -f secrets/verifier/keys.json ]; then
    if command -v pilotfish-cloud >/dev/null; then
        pilotfish-cloud keys create --tenant demo --file secrets/verifier/keys.json
    else
        docker compose build verifier-1
        docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/secrets/verifier:/secrets" pilotfish-verifier \
            keys create --tenant demo --file /secrets/keys.json
    fi
fi
grep -qs '^PILOTFISH_USER=' .env || echo "PILOTFISH_USER=$(id -u):$(id -g)" >> .env
