// The app's own credentials. A secret that is not given is left as it is.
param location string
param tags object
param name string
param privateNetwork bool
param principalId string

@secure()
param digestKey string

@secure()
param auditSecret string

var secretsUser = '4633458b-17de-408a-b874-0445c86b69e6'
var digestKeyName = 'vaultferry-digest-key'
var auditName = 'vaultferry-audit-secret'

resource vault 'Microsoft.KeyVault/vaults@2024-11-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    tenantId: subscription().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enableSoftDelete: true
    enablePurgeProtection: true
    softDeleteRetentionInDays: 90
    publicNetworkAccess: privateNetwork ? 'Disabled' : 'Enabled'
    networkAcls: {
      bypass: 'AzureServices'
      defaultAction: privateNetwork ? 'Deny' : 'Allow'
    }
  }
}

resource digestKeySecret 'Microsoft.KeyVault/vaults/secrets@2024-11-01' = if (!empty(digestKey)) {
  parent: vault
  name: digestKeyName
  properties: {
    value: digestKey
  }
}

resource auditSecretSecret 'Microsoft.KeyVault/vaults/secrets@2024-11-01' = if (!empty(auditSecret)) {
  parent: vault
  name: auditName
  properties: {
    value: auditSecret
  }
}

resource reader 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(vault.id, principalId, secretsUser)
  scope: vault
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', secretsUser)
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}

output id string = vault.id
output name string = vault.name
output digestKeyName string = digestKeyName
output auditName string = auditName
