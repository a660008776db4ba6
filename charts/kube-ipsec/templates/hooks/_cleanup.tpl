{{- define "kube-ipsec.cleanupMeta" -}}
labels:
  {{- include "kube-ipsec.labels" (dict "root" .root "component" "uninstall") | nindent 2 }}
annotations:
  helm.sh/hook: pre-delete
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Takes away from nodes what gateways and route agents have put there. */}}
{{- define "kube-ipsec.cleanup" }}
{{- $first := include "kube-ipsec.cleanupMeta" (dict "root" .root "weight" "-10") }}
{{- $second := include "kube-ipsec.cleanupMeta" (dict "root" .root "weight" "0") }}
{{- with .root }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: kube-ipsec-uninstall
  namespace: {{ .Release.Namespace | quote }}
  {{- $first | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: kube-ipsec-uninstall
  namespace: {{ .Release.Namespace | quote }}
  {{- $first | nindent 2 }}
rules:
  - apiGroups: [apps]
    resources: [deployments/scale]
    resourceNames: [kube-ipsec-operator]
    verbs: [patch]
  - apiGroups: [apps]
    resources: [daemonsets]
    verbs: [list, create, delete]
  - apiGroups: [""]
    resources: [pods]
    verbs: [list]
  - apiGroups: [""]
    resources: [secrets]
    verbs: [list, delete]
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    verbs: [list, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: kube-ipsec-uninstall
  namespace: {{ .Release.Namespace | quote }}
  {{- $first | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: kube-ipsec-uninstall
subjects:
  - kind: ServiceAccount
    name: kube-ipsec-uninstall
    namespace: {{ .Release.Namespace | quote }}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: kube-ipsec-uninstall
  namespace: {{ .Release.Namespace | quote }}
  {{- $second | nindent 2 }}
spec:
  backoffLimit: 2
  activeDeadlineSeconds: {{ add (mul 2 .Values.cleanup.timeoutSeconds) 60 }}
  template:
    metadata:
      labels:
        {{- include "kube-ipsec.podLabels" (dict "root" . "component" "uninstall") | nindent 8 }}
    spec:
      serviceAccountName: kube-ipsec-uninstall
      restartPolicy: Never
      {{- include "kube-ipsec.pullSecrets" . | nindent 6 }}
      securityContext:
        {{- include "kube-ipsec.podSecurity" . | nindent 8 }}
      containers:
        - name: uninstall
          image: {{ include "kube-ipsec.image" (dict "root" . "image" .Values.operator.image) }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          args: [uninstall, --timeout, {{ .Values.cleanup.timeoutSeconds | quote }}]
          env:
            - name: POD_NAMESPACE
              valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
          resources:
            requests: {cpu: 10m, memory: 64Mi}
          securityContext:
            {{- include "kube-ipsec.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - name: tmp
              mountPath: /tmp
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 64Mi}
      {{- with .Values.operator.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.operator.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}
{{- end }}
