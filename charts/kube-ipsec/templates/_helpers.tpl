{{/* Labels of every object. Call with (dict "root" $ "component" "operator"). */}}
{{- define "kube-ipsec.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "kube-ipsec.podLabels" . }}
{{- end }}

{{/* Labels of pods: nothing that changes with the chart's version alone, which would roll them. */}}
{{- define "kube-ipsec.podLabels" -}}
{{ include "kube-ipsec.selector" . }}
app.kubernetes.io/part-of: kube-ipsec
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What pods are selected by. */}}
{{- define "kube-ipsec.selector" -}}
app.kubernetes.io/name: kube-ipsec
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* The full name of an image. Call with (dict "root" $ "image" .Values.operator.image). */}}
{{- define "kube-ipsec.image" -}}
{{- $name := printf "%s/%s" (.root.Values.image.registry | trimSuffix "/") .image.repository -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Of the pod. */}}
{{- define "kube-ipsec.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Of the container. */}}
{{- define "kube-ipsec.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "kube-ipsec.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
A ClusterRole in the namespaces that are watched: everywhere, or one RoleBinding in each.
Call with (dict "root" $ "name" ... "account" ... "component" ...).
*/}}
{{- define "kube-ipsec.bindWatched" -}}
{{- $subject := dict "kind" "ServiceAccount" "name" .account "namespace" .root.Release.Namespace -}}
{{- if .root.Values.watchNamespaces }}
{{- range .root.Values.watchNamespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $.name }}
  namespace: {{ . | quote }}
  labels:
    {{- include "kube-ipsec.labels" $ | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $.name }}
subjects:
  - {{ toJson $subject }}
{{- end }}
{{- else }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "kube-ipsec.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
  - {{ toJson $subject }}
{{- end }}
{{- end }}
