// The command that is built, so that `go mod tidy` keeps what it needs.
//go:build tools

package tools

import _ "helm.sh/helm/v4/cmd/helm"
