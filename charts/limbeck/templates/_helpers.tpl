{{- define "limbeck.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "limbeck.operator" -}}{{ include "limbeck.fullname" . }}-operator{{- end }}
{{- define "limbeck.mlflow" -}}{{ include "limbeck.fullname" . }}-mlflow{{- end }}

{{/* Takes (list $ COMPONENT). */}}
{{- define "limbeck.selector" -}}
{{- $ := first . -}}
app.kubernetes.io/name: {{ default $.Chart.Name $.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* Takes (list $ COMPONENT). */}}
{{- define "limbeck.labels" -}}
{{- $ := first . -}}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "limbeck.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
app.kubernetes.io/part-of: limbeck
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Takes (list REPOSITORY TAG DIGEST). */}}
{{- define "limbeck.reference" -}}
{{ index . 0 }}{{ if index . 2 }}@{{ index . 2 }}{{ else }}:{{ index . 1 }}{{ end }}
{{- end }}

{{- define "limbeck.image" -}}
{{- with .Values.image -}}
{{- include "limbeck.reference" (list .repository (default $.Chart.AppVersion .tag) .digest) -}}
{{- end -}}
{{- end }}

{{- define "limbeck.mlflowImage" -}}
{{- with .Values.mlflow.image -}}
{{- if .repository -}}
{{- if not (or .tag .digest) }}{{ fail "mlflow.image.repository is given: mlflow.image.tag or mlflow.image.digest is needed too" }}{{ end -}}
{{- include "limbeck.reference" (list .repository .tag .digest) -}}
{{- else if or .tag .digest -}}
{{- include "limbeck.reference" (list $.Values.image.repository .tag .digest) -}}
{{- else -}}
{{- include "limbeck.image" $ -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The namespace whose objects are run, or that of the release. */}}
{{- define "limbeck.watched" -}}
{{- if eq .Values.rbac.scope "namespace" -}}
{{- default .Release.Namespace .Values.watchNamespace -}}
{{- else -}}
{{- if .Values.watchNamespace }}{{ fail "watchNamespace is given: it takes rbac.scope namespace" }}{{ end -}}
{{- .Release.Namespace -}}
{{- end -}}
{{- end }}

{{- define "limbeck.operatorAccount" -}}
{{- with .Values.operator.serviceAccount -}}
{{- default (ternary (include "limbeck.operator" $) "default" .create) .name -}}
{{- end -}}
{{- end }}

{{- define "limbeck.mlflowAccount" -}}
{{- with .Values.mlflow.serviceAccount -}}
{{- default (ternary (include "limbeck.mlflow" $) "default" .create) .name -}}
{{- end -}}
{{- end }}

{{- define "limbeck.runAccount" -}}
{{- default (printf "%s-run" (include "limbeck.fullname" .)) .Values.runs.serviceAccount.name -}}
{{- end }}

{{- define "limbeck.storageClaim" -}}
{{- default (printf "%s-results" (include "limbeck.fullname" .)) .Values.storage.existingClaim -}}
{{- end }}

{{/* What specs inherit, as JSON, which is YAML in which numbers stay what they are. */}}
{{- define "limbeck.defaults" -}}
{{- $execution := deepCopy .Values.defaults.execution -}}
{{- $output := .Values.defaults.output.uri -}}
{{- $tracking := dict -}}
{{- if .Values.storage.enabled -}}
{{- $volume := dict "claim" (include "limbeck.storageClaim" .) "mountPath" .Values.storage.mountPath -}}
{{- $_ := set $execution "volumes" (append (default list $execution.volumes) $volume) -}}
{{- $output = default .Values.storage.mountPath $output -}}
{{- end -}}
{{- if and .Values.runs.serviceAccount.create (eq .Values.rbac.scope "namespace") (not $execution.serviceAccount) -}}
{{- $_ := set $execution "serviceAccount" (include "limbeck.runAccount" .) -}}
{{- end -}}
{{- if and .Values.imagePullSecrets (not $execution.imagePullSecrets) -}}
{{- $names := list -}}
{{- range .Values.imagePullSecrets }}{{ $names = append $names .name }}{{ end -}}
{{- $_ := set $execution "imagePullSecrets" $names -}}
{{- end -}}
{{- with default (ternary (include "limbeck.mlflowUrl" .) "" .Values.mlflow.enabled) .Values.defaults.tracking.uri -}}
{{- $_ := set $tracking "uri" . -}}
{{- end -}}
{{- with .Values.defaults.tracking.experiment }}{{ $_ := set $tracking "experiment" . }}{{ end -}}
{{- $defaults := dict -}}
{{- with $output }}{{ $_ := set $defaults "output" (dict "uri" .) }}{{ end -}}
{{- with $tracking }}{{ $_ := set $defaults "tracking" . }}{{ end -}}
{{- with $execution }}{{ $_ := set $defaults "execution" . }}{{ end -}}
{{- toPrettyJson $defaults -}}
{{- end }}

{{- define "limbeck.mlflowHost" -}}{{ include "limbeck.mlflow" . }}.{{ .Release.Namespace }}.svc{{- end }}
{{- define "limbeck.mlflowUrl" -}}http://{{ include "limbeck.mlflowHost" . }}:{{ .Values.mlflow.service.port }}{{- end }}

{{/* Whether MLflow keeps something on its volume. */}}
{{- define "limbeck.mlflowVolume" -}}
{{- if not (and .Values.mlflow.database.existingSecret .Values.mlflow.artifacts.destination) }}true{{ end -}}
{{- end }}

{{/* The names that MLflow's service has in the cluster's DNS, as a list in JSON. */}}
{{- define "limbeck.mlflowNames" -}}
{{- $name := include "limbeck.mlflow" . -}}
{{- $there := printf "%s.%s" $name .Release.Namespace -}}
{{- $names := list $name $there (printf "%s.svc" $there) (printf "%s.svc.%s" $there .Values.mlflow.clusterDomain) -}}
{{- toJson $names -}}
{{- end }}

{{/* The Host headers that MLflow answers to. */}}
{{- define "limbeck.mlflowHosts" -}}
{{- $hosts := list -}}
{{- range include "limbeck.mlflowNames" . | fromJsonArray -}}
{{- $hosts = concat $hosts (list . (printf "%s:%v" . $.Values.mlflow.service.port)) -}}
{{- end -}}
{{- $hosts = concat $hosts (list "localhost" "localhost:*" "127.0.0.1" "127.0.0.1:*") -}}
{{- concat $hosts .Values.mlflow.allowedHosts | uniq | join "," -}}
{{- end }}

{{/* The Origin headers that may change things: its own pages', whatever name they are reached by, and those that are given. */}}
{{- define "limbeck.mlflowOrigins" -}}
{{- $origins := list -}}
{{- range include "limbeck.mlflowNames" . | fromJsonArray -}}
{{- $origins = append $origins (printf "http://%s:%v" . $.Values.mlflow.service.port) -}}
{{- end -}}
{{- range without .Values.mlflow.allowedHosts "*" -}}
{{- $origins = concat $origins (list (printf "https://%s" .) (printf "http://%s" .)) -}}
{{- end -}}
{{- concat $origins .Values.mlflow.corsAllowedOrigins | uniq | join "," -}}
{{- end }}

{{/* Constraints of topology spread, with the selector of a component: takes (list $ COMPONENT CONSTRAINTS). */}}
{{- define "limbeck.spread" -}}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "limbeck.selector" (list (first .) (index . 1)) | fromYaml)) -}}
{{- $constraints := list -}}
{{- range last . }}{{ $constraints = append $constraints (merge (deepCopy .) $selector) }}{{ end -}}
{{- toYaml $constraints -}}
{{- end }}

{{/* What both Deployments take of their values alike: takes (list $ COMPONENT VALUES). */}}
{{- define "limbeck.placement" -}}
{{- $ := first . -}}
{{- $component := index . 1 -}}
{{- with last . -}}
{{- with $.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- include "limbeck.spread" (list $ $component .) | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Annotations of an object of helm test; takes its weight. */}}
{{- define "limbeck.hook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
