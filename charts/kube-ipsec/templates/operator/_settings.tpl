{{/* The operator's settings file; the model is operator/ipsec_operator/settings.py. */}}
{{- define "kube-ipsec.settings" -}}
namespace: {{ .Release.Namespace | quote }}
watchNamespaces: {{ toJson .Values.watchNamespaces }}
image: {{ include "kube-ipsec.image" (dict "root" . "image" .Values.gateway.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
imagePullSecrets: {{ toJson .Values.imagePullSecrets }}
commonLabels: {{ toJson .Values.commonLabels }}
logFormat: {{ .Values.operator.logFormat }}
logLevel: {{ .Values.operator.logLevel }}
clusterSubnets:
  {{- toYaml .Values.clusterSubnets | nindent 2 }}
gateway:
  {{- /* What is empty is the gateway's own choice. */}}
  {{- range $key := list "markBits" "tables" }}
  {{- with index $.Values.gateway $key }}
  {{ $key }}: {{ . | quote }}
  {{- end }}
  {{- end }}
  {{- toYaml (omit .Values.gateway "image" "markBits" "tables") | nindent 2 }}
routeAgent:
  {{- toYaml .Values.routeAgent | nindent 2 }}
{{- end }}
