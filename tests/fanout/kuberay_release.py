"""The release of KubeRay whose schema the manifest is held against."""

MODULE = "github.com/ray-project/kuberay/ray-operator"
VERSION = "v1.6.1"
SUM = "h1:IMtV0QW8AxGp4/CbPLd/olXBBxpUNQQr1n4Mu59khl4="
