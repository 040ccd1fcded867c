// Where a Key Vault is: a resource's location can be a parameter, but not what another resource says.
param vaultName string

resource vault 'Microsoft.KeyVault/vaults@2024-11-01' existing = {
  name: vaultName
}

output location string = vault.location
